//! The first look at a model file, on the level of protobuf's wire format.
//!
//! [`strip`] walks the messages that ONNX defines and copies what the compiler needs. Large tensor
//! contents are not copied: they stay where they are in the (mapped) file, and a marker takes their
//! place. Documentation, metadata and unknown fields are left out. What is malformed is found here,
//! with its byte offset, so that the protobuf library only ever sees well-formed input of bounded
//! nesting, which its skipping of unknown groups depends on.

use super::error::Error;
use bytes::Bytes;

/// Field number of the marker: its value is an index into the detached contents. No protobuf schema
/// may use the number, and a file's own field of this number is left out as every unknown field is.
pub const DETACHED: u32 = (1 << 29) - 1;

/// Contents of at least this many bytes stay in the file.
const DETACH_FROM: usize = 1024;

/// How deep messages may nest. A subgraph takes three levels.
const MAX_DEPTH: usize = 64;

/// A message type of ONNX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// `ModelProto`.
    Model,
    /// `GraphProto`.
    Graph,
    /// `NodeProto`.
    Node,
    /// `AttributeProto`.
    Attribute,
    /// `TensorProto`.
    Tensor,
    /// `TensorProto.Segment`.
    Segment,
    /// `SparseTensorProto`.
    SparseTensor,
    /// `ValueInfoProto`.
    ValueInfo,
    /// `TypeProto`.
    Type,
    /// `TypeProto.Tensor` and `TypeProto.SparseTensor`.
    TensorType,
    /// `TypeProto.Sequence` and `TypeProto.Optional`.
    ElementType,
    /// `TypeProto.Map`.
    MapType,
    /// `TensorShapeProto`.
    Shape,
    /// `TensorShapeProto.Dimension`.
    Dimension,
    /// `OperatorSetIdProto`.
    OperatorSet,
    /// `FunctionProto`.
    Function,
    /// `StringStringEntryProto`.
    Entry,
}

/// What a field holds.
enum Field {
    Message(Message),
    Text,
    /// Numbers or bytes: copied as they are.
    Plain,
    /// The contents of a tensor.
    Contents,
    /// Not needed.
    Skip,
}

/// The field `number` of a message, by the published schema.
fn field(message: Message, number: u32) -> Field {
    use Field::{Contents, Plain, Skip, Text};
    let sub = Field::Message;
    match (message, number) {
        (Message::Model, 7) => sub(Message::Graph),
        (Message::Model, 8) | (Message::Function, 9) => sub(Message::OperatorSet),
        (Message::Model, 25) => sub(Message::Function),
        (Message::Model, 1) => Plain,
        (Message::Model, 2 | 3) => Text,

        (Message::Graph, 1) | (Message::Function, 7) => sub(Message::Node),
        (Message::Graph, 5) => sub(Message::Tensor),
        (Message::Graph, 15) => sub(Message::SparseTensor),
        (Message::Graph, 11..=13) | (Message::Function, 12) => sub(Message::ValueInfo),
        (Message::Graph, 2) => Text,

        (Message::Function, 1 | 4 | 5 | 6 | 10 | 13) => Text,
        (Message::Function, 11) => sub(Message::Attribute),

        (Message::Node, 1..=4 | 7 | 8) => Text,
        (Message::Node, 5) => sub(Message::Attribute),

        (Message::Attribute, 1 | 21) => Text,
        (Message::Attribute, 2 | 3 | 4 | 7 | 8 | 9 | 20) => Plain,
        (Message::Attribute, 5 | 10) => sub(Message::Tensor),
        (Message::Attribute, 6 | 11) => sub(Message::Graph),
        (Message::Attribute, 22 | 23) => sub(Message::SparseTensor),
        (Message::Attribute, 14 | 15) => sub(Message::Type),

        (Message::Tensor, 8) => Text,
        (Message::Tensor, 9) => Contents,
        (Message::Tensor, 13) => sub(Message::Entry),
        (Message::Tensor, 3) => sub(Message::Segment),
        (Message::Tensor, 1..=7 | 10 | 11 | 14) | (Message::Segment, 1 | 2) => Plain,
        (Message::SparseTensor, 1 | 2) => sub(Message::Tensor),
        (Message::SparseTensor, 3) => Plain,

        (Message::ValueInfo, 1) => Text,
        (Message::ValueInfo, 2) => sub(Message::Type),
        (Message::Type, 1 | 8) => sub(Message::TensorType),
        (Message::Type, 4 | 9) => sub(Message::ElementType),
        (Message::Type, 5) => sub(Message::MapType),
        (Message::TensorType, 1) => Plain,
        (Message::TensorType, 2) => sub(Message::Shape),
        (Message::ElementType, 1) | (Message::MapType, 2) => sub(Message::Type),
        (Message::MapType, 1) => Plain,
        (Message::Shape, 1) => sub(Message::Dimension),
        (Message::Dimension, 1) => Plain,
        (Message::Dimension, 2) => Text,

        (Message::OperatorSet, 1) | (Message::Entry, 1 | 2) => Text,
        (Message::OperatorSet, 2) => Plain,
        _ => Skip,
    }
}

/// A file without what is not needed, and the tensor contents that stayed in the file.
#[derive(Debug)]
pub struct Stripped {
    /// The encoded message.
    pub message: Vec<u8>,
    /// What the markers stand for.
    pub contents: Vec<Bytes>,
}

/// Walks an encoded `root` message.
///
/// # Errors
/// When the bytes are not protobuf, end early, nest too deeply, or hold text that is not UTF-8.
pub fn strip(file: &Bytes, root: Message) -> Result<Stripped, Error> {
    let mut s = Stripper { file, contents: vec![] };
    let message = s.message(0, file.len(), root, 0)?;
    Ok(Stripped { message, contents: s.contents })
}

struct Stripper<'a> {
    file: &'a Bytes,
    contents: Vec<Bytes>,
}

impl Stripper<'_> {
    fn message(&mut self, begin: usize, end: usize, message: Message, depth: usize) -> Result<Vec<u8>, Error> {
        if depth > MAX_DEPTH {
            return Err(bad(begin, format!("messages nest more than {MAX_DEPTH} deep")));
        }
        let mut out = Vec::new();
        let mut at = begin;
        while at < end {
            let start = at;
            let tag = self.varint(&mut at, end)?;
            let number = u32::try_from(tag >> 3).ok().filter(|n| (1..=DETACHED).contains(n));
            let Some(number) = number else {
                return Err(bad(start, format!("{message:?} has a field of number {}, which protobuf does not allow", tag >> 3)));
            };
            let kind = field(message, number);
            let delimited = match tag & 7 {
                0 => {
                    self.varint(&mut at, end)?;
                    None
                }
                1 => {
                    at = self.advance(at, 8, end)?;
                    None
                }
                5 => {
                    at = self.advance(at, 4, end)?;
                    None
                }
                2 => {
                    let len = self.varint(&mut at, end)?;
                    let data = at;
                    at = self.advance(at, len, end)?;
                    Some(data)
                }
                wire => return Err(bad(start, format!("field {number} of {message:?} has the wire type {wire}, which ONNX does not use"))),
            };
            let whole = &self.file[start..at];
            match (kind, delimited) {
                (Field::Skip, _) => {}
                (Field::Plain, _) => out.extend_from_slice(whole),
                (Field::Message(_) | Field::Text | Field::Contents, None) => {
                    return Err(bad(start, format!("field {number} of {message:?} is a number where the schema has data")));
                }
                (Field::Text, Some(data)) => {
                    if std::str::from_utf8(&self.file[data..at]).is_err() {
                        return Err(bad(data, format!("field {number} of {message:?} is text, but not UTF-8")));
                    }
                    out.extend_from_slice(whole);
                }
                (Field::Contents, Some(data)) if at - data >= DETACH_FROM => {
                    put_varint(&mut out, u64::from(DETACHED) << 3);
                    put_varint(&mut out, self.contents.len() as u64);
                    self.contents.push(self.file.slice(data..at));
                }
                (Field::Contents, Some(_)) => out.extend_from_slice(whole),
                (Field::Message(inner), Some(data)) => {
                    let body = self.message(data, at, inner, depth + 1)?;
                    put_varint(&mut out, tag);
                    put_varint(&mut out, body.len() as u64);
                    out.extend_from_slice(&body);
                }
            }
        }
        Ok(out)
    }

    fn advance(&self, at: usize, by: u64, end: usize) -> Result<usize, Error> {
        match usize::try_from(by).ok().and_then(|n| at.checked_add(n)) {
            Some(to) if to <= end => Ok(to),
            _ => Err(bad(at, format!("{by} bytes should follow, but only {} are left", end - at)).help("the file is truncated or damaged")),
        }
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64, Error> {
        let start = *at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            if *at >= end {
                return Err(bad(start, "the data ends within a number").help("the file is truncated or damaged"));
            }
            let byte = self.file[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(bad(start, "a number takes more than ten bytes").help("this is not an ONNX file, or it is damaged"))
    }
}

fn bad(at: usize, message: impl Into<String>) -> Error {
    Error::invalid(format!("byte {at}"), message)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A field of data.
    fn delimited(number: u32, data: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        put_varint(&mut out, u64::from(number) << 3 | 2);
        put_varint(&mut out, data.len() as u64);
        out.extend(data);
        out
    }

    /// Every message type with the numbers of the fields that lead to it from a model.
    fn messages() -> Vec<(Message, Vec<u32>)> {
        let mut found = vec![(Message::Model, vec![])];
        let mut i = 0;
        while let Some((message, path)) = found.get(i).cloned() {
            for number in 1..64 {
                if let Field::Message(inner) = field(message, number)
                    && found.iter().all(|(m, _)| *m != inner)
                {
                    found.push((inner, path.iter().copied().chain([number]).collect()));
                }
            }
            i += 1;
        }
        found
    }

    fn at_path(path: &[u32], data: Vec<u8>) -> Bytes {
        path.iter().rev().fold(data, |data, &number| delimited(number, &data)).into()
    }

    /// Gives what is left of a file to the protobuf library, on a stack on which long recursion shows.
    fn decode(file: &Bytes) {
        use onnx_protobuf::Message as _;
        if let Ok(s) = strip(file, Message::Model) {
            let parse = move || drop(onnx_protobuf::ModelProto::parse_from_bytes(&s.message));
            std::thread::Builder::new().stack_size(1 << 20).spawn(parse).unwrap().join().unwrap();
        }
    }

    #[test]
    fn no_field_of_any_message_carries_groups_to_the_library() {
        let all = messages();
        assert_eq!(all.len(), 17, "every message type is reached");
        for (_, path) in all {
            for number in (1..64).chain([DETACHED - 1, DETACHED]) {
                // Groups that are opened, and groups that are opened and closed.
                for payload in [vec![0x1b; 20_000], [vec![0x1b; 20_000], vec![0x1c; 20_000]].concat()] {
                    decode(&at_path(&path, delimited(number, &payload)));
                }
            }
        }
    }

    #[test]
    fn every_kind_of_nesting_is_bounded() {
        // Ways from a message type back to itself.
        for (root, cycle) in [
            (Message::Graph, &[1, 5, 6][..]),
            (Message::Graph, &[1, 5, 11]),
            (Message::Type, &[4, 1]),
            (Message::Type, &[9, 1]),
            (Message::Type, &[5, 2]),
            (Message::Attribute, &[6, 1, 5]),
        ] {
            let path: Vec<u32> = cycle.iter().copied().cycle().take(3000).collect();
            let e = strip(&at_path(&path, vec![]), root).unwrap_err().to_string();
            assert!(e.contains("nest more than"), "{root:?} by {cycle:?}: {e}");
        }
    }

    /// Random fields, a part of them such as the schema has, in each other.
    fn fields(depth: u32) -> BoxedStrategy<Vec<u8>> {
        let scalar = prop_oneof![
            Just(vec![]),
            prop::collection::vec(any::<u8>(), 0..12),
            Just(vec![0x0b, 0x0c]),
            Just(vec![0x0b; 40]),
            Just(b"text".to_vec()),
        ];
        let inner = if depth == 0 { scalar.boxed() } else { prop_oneof![1 => scalar, 2 => fields(depth - 1)].boxed() };
        let number = prop_oneof![8 => 1..27u32, 1 => Just(DETACHED), 1 => any::<u32>().prop_map(|n| n >> 3)];
        let one = (number, 0..8u8, any::<u64>(), inner).prop_map(|(number, kind, value, data)| {
            let mut out = vec![];
            match kind {
                0..5 => return delimited(number, &data),
                5 => {
                    put_varint(&mut out, u64::from(number) << 3);
                    put_varint(&mut out, value);
                }
                wire => put_varint(&mut out, u64::from(number) << 3 | u64::from(wire)),
            }
            out
        });
        prop::collection::vec(one, 0..5).prop_map(|l| l.concat()).boxed()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_left_of_a_file_is_all_that_is_left_of_itself(data in fields(6)) {
            let file = Bytes::from(data);
            if let Ok(s) = strip(&file, Message::Model) {
                let again = strip(&Bytes::from(s.message.clone()), Message::Model).unwrap();
                prop_assert_eq!(&again.message, &s.message);
                decode(&file);
            }
        }
    }

    /// `depth` graphs, each the attribute of a node of the one around it.
    fn nested(depth: usize) -> Bytes {
        let mut body = vec![];
        for _ in 0..depth {
            for tag in [(6 << 3) | 2, (5 << 3) | 2, (1 << 3) | 2] {
                let mut outer = vec![tag];
                put_varint(&mut outer, body.len() as u64);
                outer.extend(&body);
                body = outer;
            }
        }
        body.into()
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(strip(&nested(20), Message::Graph).is_ok());
        let e = strip(&nested(5000), Message::Graph).unwrap_err().to_string();
        assert!(e.contains("nest more than") && e.contains("byte"), "{e}");
    }

    #[test]
    fn groups_are_refused() {
        let groups = Bytes::from(vec![0x1b; 100_000]);
        assert!(strip(&groups, Message::Model).unwrap_err().to_string().contains("wire type 3"));
    }

    #[test]
    fn large_contents_stay_in_the_file() {
        let mut tensor = vec![(9 << 3) | 2];
        put_varint(&mut tensor, 4096);
        let start = tensor.len();
        tensor.extend([7; 4096]);
        let file = Bytes::from(tensor);
        let s = strip(&file, Message::Tensor).unwrap();
        assert!(s.message.len() < 16);
        assert_eq!(s.contents[0].as_ptr(), file[start..].as_ptr());
        // A marker in the file itself is left out.
        assert!(strip(&Bytes::from(s.message), Message::Tensor).unwrap().message.is_empty());
    }

    #[test]
    fn truncation_names_the_offset() {
        let e = strip(&Bytes::from_static(&[0x3a, 0x7f, 0x00]), Message::Model).unwrap_err().to_string();
        assert!(e.contains("127 bytes should follow, but only 1 are left") && e.contains("byte 2"), "{e}");
    }
}
