//! Shared objects and executables, made by the C compiler of the system.

use super::ArtifactError;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use target_lexicon::{BinaryFormat, Environment, OperatingSystem, Triple};

/// The name of the C compiler that makes code for `target`: `cc` for this machine, else the name that
/// cross compilers have, such as `aarch64-linux-gnu-gcc`.
pub fn compiler_name(target: &Triple) -> String {
    let host = Triple::host();
    let environment = |t: &Triple| match t.environment {
        Environment::Unknown => "gnu".into(),
        other => other.to_string(),
    };
    let system = |t: &Triple| (t.architecture, t.operating_system, environment(t));
    if system(target) == system(&host) {
        return "cc".into();
    }
    let environment = environment(target);
    match target.operating_system {
        OperatingSystem::Linux => format!("{}-linux-{environment}-gcc", target.architecture),
        _ => format!("{target}-gcc"),
    }
}

/// The C compiler for a target, found in the search path.
///
/// # Errors
/// [`ArtifactError::NoCompiler`] when there is none, [`ArtifactError::Target`] for targets whose linkers
/// take other options.
pub fn find(target: &Triple) -> Result<PathBuf, ArtifactError> {
    if target.binary_format != BinaryFormat::Elf {
        let what = "shared objects and executables are made for targets with ELF files; link the object with the tools of the target";
        return Err(ArtifactError::Target { target: target.to_string(), what: what.into() });
    }
    let name = compiler_name(target);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(&name)).find(|p| p.is_file());
    found.ok_or_else(|| ArtifactError::NoCompiler { name, target: target.to_string() })
}

/// Makes the shared object `out` of an object. Its bytes do not depend on where the files are.
///
/// # Errors
/// What the C compiler says.
pub fn shared(cc: &Path, object: &Path, soname: &str, needs_libc: bool, out: &Path) -> Result<(), ArtifactError> {
    let soname = format!("-Wl,-soname,{soname}");
    let mut args: Vec<&OsStr> = ["-shared", "-nostartfiles"].map(OsStr::new).to_vec();
    if !needs_libc {
        args.push("-nostdlib".as_ref());
    }
    args.extend(["-Wl,-Bsymbolic", "-Wl,-z,noexecstack", "-Wl,-z,relro,-z,now", "-Wl,--build-id=none", &soname].map(OsStr::new));
    args.extend(["-o".as_ref(), out.as_os_str(), object.as_os_str()]);
    run(cc, &args)
}

/// Compiles `main` (in a folder with the header) and links it with the object.
///
/// # Errors
/// What the C compiler says.
pub fn executable(cc: &Path, main: &Path, object: &Path, out: &Path) -> Result<(), ArtifactError> {
    let mut args: Vec<&OsStr> = ["-std=c99", "-O2", "-Wl,-z,noexecstack", "-Wl,--build-id=none", "-o"].map(OsStr::new).to_vec();
    args.extend([out.as_os_str(), main.as_os_str(), object.as_os_str()]);
    run(cc, &args)
}

fn run(cc: &Path, args: &[&OsStr]) -> Result<(), ArtifactError> {
    // Messages are shown to people: their language is the user's, the files' contents do not depend on it.
    let output = Command::new(cc).args(args).output().map_err(|source| ArtifactError::io("run", cc, source))?;
    if output.status.success() {
        return Ok(());
    }
    let mut command = OsString::from(cc);
    for arg in args {
        command.push(" ");
        command.push(arg);
    }
    Err(ArtifactError::Compiler {
        command: command.to_string_lossy().into_owned(),
        output: String::from_utf8_lossy(&output.stderr).trim_end().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_compilers_have_their_usual_names() {
        assert_eq!(compiler_name(&Triple::host()), "cc");
        let arm: Triple = "aarch64-unknown-linux-gnu".parse().unwrap();
        let x86: Triple = "x86_64-unknown-linux-gnu".parse().unwrap();
        let (other, name) = if cfg!(target_arch = "x86_64") { (arm, "aarch64-linux-gnu-gcc") } else { (x86, "x86_64-linux-gnu-gcc") };
        assert_eq!(compiler_name(&other), name);
        let musl: Triple = "x86_64-unknown-linux-musl".parse().unwrap();
        if Triple::host() != musl {
            assert_eq!(compiler_name(&musl), "x86_64-linux-musl-gcc");
        }
        let mac: Triple = "aarch64-apple-darwin".parse().unwrap();
        assert!(matches!(find(&mac), Err(ArtifactError::Target { .. })));
    }
}
