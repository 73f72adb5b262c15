//! Reads the names of exported data from an ELF shared object: just enough to find the entry of a
//! model without knowing the model's name. Only 64-bit objects in the byte order of this machine are
//! read, since others cannot be loaded anyway.

/// Names of the objects of at least `min_bytes` bytes that `file` exports, and whose names end with
/// `suffix`, in name order. `None` if the file is not such an ELF object or is damaged.
pub fn exported_objects(file: &[u8], suffix: &str, min_bytes: u64) -> Option<Vec<String>> {
    const CLASS_64: u8 = 2;
    let byte_order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if file.get(..6)? != [0x7f, b'E', b'L', b'F', CLASS_64, byte_order] {
        return None;
    }
    let sections = section_headers(file)?;
    let mut names = Vec::new();
    for s in sections.iter().filter(|s| s.kind == SHT_DYNSYM) {
        let symbols = s.contents(file)?;
        let strings = sections.get(s.link as usize)?.contents(file)?;
        for symbol in symbols.chunks_exact(SYMBOL_BYTES) {
            let name = name_at(strings, u32_at(symbol, 0)? as usize)?;
            let (kind, binding) = (symbol[4] & 15, symbol[4] >> 4);
            let defined = u16_at(symbol, 6)? != 0;
            let bytes = u64_at(symbol, 16)?;
            if defined && kind == STT_OBJECT && binding != STB_LOCAL && bytes >= min_bytes && name.ends_with(suffix) {
                names.push(name.to_owned());
            }
        }
    }
    names.sort();
    Some(names)
}

const SHT_DYNSYM: u32 = 11;
const STT_OBJECT: u8 = 1;
const STB_LOCAL: u8 = 0;
const SYMBOL_BYTES: usize = 24;
const SECTION_BYTES: usize = 64;

struct Section {
    kind: u32,
    offset: u64,
    bytes: u64,
    link: u32,
}

impl Section {
    fn contents<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let begin = usize::try_from(self.offset).ok()?;
        file.get(begin..begin.checked_add(usize::try_from(self.bytes).ok()?)?)
    }
}

fn section_headers(file: &[u8]) -> Option<Vec<Section>> {
    let begin = usize::try_from(u64_at(file, 0x28)?).ok()?;
    let each = u16_at(file, 0x3a)? as usize;
    let count = u16_at(file, 0x3c)? as usize;
    if each != SECTION_BYTES {
        return None;
    }
    let headers = file.get(begin..begin.checked_add(count * each)?)?;
    headers
        .chunks_exact(each)
        .map(|h| Some(Section { kind: u32_at(h, 4)?, offset: u64_at(h, 24)?, bytes: u64_at(h, 32)?, link: u32_at(h, 40)? }))
        .collect()
}

fn name_at(strings: &[u8], at: usize) -> Option<&str> {
    let rest = strings.get(at..)?;
    std::str::from_utf8(&rest[..rest.iter().position(|&b| b == 0)?]).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
