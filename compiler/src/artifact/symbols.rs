//! What an object asks of others and offers to them.

use super::ArtifactError;
use object::{BinaryFormat, Object, ObjectSymbol};

/// The only functions that an object may need: every C library, also of freestanding systems, has them.
const ALLOWED: [&str; 3] = ["memcpy", "memmove", "memset"];

/// The symbols that an object needs from elsewhere, in name order.
///
/// # Errors
/// When it needs anything but `memcpy`, `memmove` and `memset`, or exports a symbol that does not begin
/// with `prefix`: bugs of ours.
pub fn undefined(object: &[u8], prefix: &str) -> Result<Vec<String>, ArtifactError> {
    let broken = |e: object::Error| ArtifactError::Internal(format!("the object cannot be read back: {e}"));
    let file = object::File::parse(object).map_err(broken)?;
    let prefix = format!("{prefix}_");
    let mut needed = vec![];
    for symbol in file.symbols() {
        let name = symbol.name().map_err(broken)?;
        let name = if file.format() == BinaryFormat::MachO { name.strip_prefix('_').unwrap_or(name) } else { name };
        if symbol.is_undefined() && !name.is_empty() {
            needed.push(name.to_string());
        } else if symbol.is_global() && !name.starts_with(&prefix) {
            return Err(ArtifactError::Internal(format!("the object exports `{name}`, which does not begin with `{prefix}`")));
        }
    }
    needed.sort();
    needed.dedup();
    match needed.iter().find(|n| !ALLOWED.contains(&n.as_str())) {
        Some(other) => Err(ArtifactError::Internal(format!("the object needs `{other}`; it may need {} only", ALLOWED.join(", ")))),
        None => Ok(needed),
    }
}
