//! A compiled program as files: bundles, objects, libraries, executables, listings.
//!
//! | module | makes |
//! |---|---|
//! | [`header`] | `NAME.h` |
//! | [`rust`] | `NAME.rs` |
//! | [`example`] | `example_main.c`, `Makefile` |
//! | [`package`] | `NAME-config.cmake`, `NAME.pc` |
//! | [`json`] | `NAME.manifest.json` |
//! | [`archive`] | `libNAME.a` |
//! | [`link`] | `NAME.so`, executables |
//! | [`asm`] | listings of machine code and of Cranelift IR |
//! | [`bundle`] | whole folders and files at their place |
//!
//! Equal programs and options give equal bytes, whatever folder they are written to. [`read`] reads them back. What was made of
//! another model is not replaced unless the user says so.

pub mod archive;
pub mod asm;
pub mod bundle;
pub mod example;
pub mod header;
pub mod interface;
pub mod json;
pub mod link;
pub mod package;
pub mod read;
pub mod rust;
pub mod symbols;

use crate::emit::clif::target::Cpu;
use crate::emit::module::EmitError;
use crate::emit::object::{self, Object, ObjectOptions};
use crate::files::{self, Place};
use crate::kernel::Program;
use bundle::Staging;
use interface::Interface;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use target_lexicon::Triple;
use tfc_runtime::manifest::Manifest;
use tfc_runtime::weights;

/// A kind of artifact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A folder with everything.
    Bundle,
    /// A relocatable object.
    Obj,
    /// A static library.
    Lib,
    /// A shared object.
    Shared,
    /// An executable that runs the model on made-up inputs.
    Exe,
    /// A listing of the machine code.
    Asm,
    /// A listing of the Cranelift IR.
    Clif,
}

impl Kind {
    /// Whether it has code that a machine runs, which needs the weights.
    fn runs(self) -> bool {
        !matches!(self, Kind::Asm | Kind::Clif)
    }

    /// The extension of its files; none for folders and executables.
    pub fn extension(self) -> Option<&'static str> {
        match self {
            Kind::Bundle | Kind::Exe => None,
            Kind::Obj => Some("o"),
            Kind::Lib => Some("a"),
            Kind::Shared => Some("so"),
            Kind::Asm => Some("s"),
            Kind::Clif => Some("clif"),
        }
    }
}

/// Where the weights go.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum WeightsMode {
    /// Into the object when they have less than [`EMBED_LIMIT`] bytes or there is no folder for a file, else into a file.
    #[default]
    Auto,
    /// Into the object.
    Embedded,
    /// Into a file.
    External,
}

/// Weights of this many bytes and more get a file of their own unless the user wants otherwise.
pub const EMBED_LIMIT: u64 = 1 << 20;

/// What to write and where.
pub struct Options<'a> {
    /// Prefix of all symbols and of most files, a C identifier.
    pub name: &'a str,
    /// What to write.
    ///
    /// One kind is written to `out`, into it where that is a device or a pipe. With [`Kind::Bundle`], `out` is the folder and the other kinds are
    /// files in it. Several kinds without it are `out` with the extension of each.
    pub kinds: &'a BTreeSet<Kind>,
    /// Where to write it. A weights file and, for objects and libraries, a header go beside it, with its stem.
    pub out: &'a Path,
    /// Whether what was made of another model is replaced.
    pub force: bool,
    /// Where the weights go.
    pub weights: WeightsMode,
    /// The target.
    pub target: &'a Triple,
    /// CPU variants from the plainest to the best; at least one.
    pub cpus: &'a [Cpu],
    /// Options in their command-line form, for the manifest.
    pub options: &'a [String],
    /// Hash of the model's files.
    pub model_hash: u128,
    /// Further files for the bundle: what is behind the `NAME.` of their name, and their contents. Without
    /// a bundle they are not written.
    pub extra: &'a [(&'a str, &'a [u8])],
}

/// What was written.
pub struct Written {
    /// Files and folders, in the order of their kinds.
    pub paths: Vec<PathBuf>,
    /// What a user should know, a sentence each.
    pub notes: Vec<String>,
    /// The manifest with the sizes of the code.
    pub manifest: Manifest,
}

/// An artifact could not be written. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Code generation: a bug of ours.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something else is where the artifact would go.
    #[error("cannot write the bundle to `{}`: {reason}; choose another folder with -o, or move it away", path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
        /// What is there.
        reason: String,
    },
    /// What was made of another model is where the artifact would go.
    #[error(
        "cannot write `{}`: {what} of another model is there ({}; this model's is {ours:032x}); choose another name with -o, or replace it with --force",
        path.display(),
        theirs.map_or("whose hash is not known".into(), |h| format!("whose hash is {h:032x}"))
    )]
    OtherModel {
        /// Where.
        path: PathBuf,
        /// What is there.
        what: &'static str,
        /// The hash of the model that it was made of, if that can be told.
        theirs: Option<u128>,
        /// The hash of the model that is compiled.
        ours: u128,
    },
    /// A header that was not generated is where one would go.
    #[error(
        "cannot write `{}`: the header there was not generated by tfc and would be lost; choose another name with -o, move it away, or replace it with --force",
        path.display()
    )]
    OtherHeader {
        /// Where.
        path: PathBuf,
    },
    /// There is no folder for the weights file.
    #[error("there is no place for a weights file beside `{}`, which is a device or a pipe; put the weights into the object (--weights embedded)", path.display())]
    NoFolder {
        /// Where the object would go.
        path: PathBuf,
    },
    /// No C compiler for what needs one.
    #[error(
        "shared objects and executables for {target} need a C compiler: there is no `{name}` in the search path; install one (gcc or clang), or write an object (-o NAME.o) and link it elsewhere"
    )]
    NoCompiler {
        /// The command that was searched for.
        name: String,
        /// The target.
        target: String,
    },
    /// The C compiler failed.
    #[error("the C compiler failed: {command}\n{output}")]
    Compiler {
        /// The command line.
        command: String,
        /// What it said.
        output: String,
    },
    /// This kind is not made for this target.
    #[error("{what} (the target is {target})")]
    Target {
        /// The target.
        target: String,
        /// What is missing and what to do.
        what: String,
    },
    /// A bug of ours.
    #[error("bug in tfc: {0}")]
    Internal(String),
}

impl ArtifactError {
    fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        ArtifactError::Io { action, path: path.into(), source }
    }
}

impl Options<'_> {
    /// Where the file of one kind goes, without a bundle.
    fn file(&self, kind: Kind) -> PathBuf {
        if self.kinds.len() == 1 { self.out.into() } else { self.out.with_extension(kind.extension().unwrap_or_default()) }
    }

    /// Where the header goes that lies beside objects and libraries, without a bundle; none beside a stream.
    fn header_file(&self) -> Option<PathBuf> {
        let links = self.kinds.iter().any(|k| matches!(k, Kind::Obj | Kind::Lib | Kind::Shared)) && !self.kinds.contains(&Kind::Bundle);
        let file = self.out.with_extension("h");
        (links && !Place::is_stream(self.out) && !self.kinds.iter().any(|&k| self.file(k) == file)).then_some(file)
    }

    /// The name of the weights file: in a bundle that of all its files, else that of the output.
    fn weights_file(&self) -> String {
        let stem = self.out.file_stem().filter(|_| !self.kinds.contains(&Kind::Bundle)).map(OsStr::to_string_lossy);
        format!("{}.weights.bin", stem.as_deref().unwrap_or(self.name))
    }
}

/// Refuses what [`write`] will refuse, as far as it can be told without the model: to be asked before the work.
///
/// # Errors
/// When something is in the way, the folder cannot be written, or a tool is missing.
pub fn check(options: &Options) -> Result<(), ArtifactError> {
    let io = |e| ArtifactError::io("write", options.out, e);
    let place = Place::of(options.out).map_err(io)?;
    if options.kinds.contains(&Kind::Bundle) {
        let Place::Name(name) = &place else {
            return Err(ArtifactError::Occupied { path: options.out.into(), reason: "it is a device or a pipe".into() });
        };
        if name.file_name().is_none() {
            let reason = "a bundle takes the place of its folder, which needs a name for that".into();
            return Err(ArtifactError::Occupied { path: options.out.into(), reason });
        }
        bundle::recover(name)?;
        bundle::check_place(name)?;
    } else {
        let runs = options.kinds.iter().any(|k| k.runs());
        let weights = (runs && options.weights == WeightsMode::External).then(|| options.out.with_file_name(options.weights_file()));
        // A folder in the way of one of them shall not leave the others without it.
        let header = options.header_file();
        if let Some(out) = options.kinds.iter().map(|&k| options.file(k)).chain(weights).chain(header.clone()).find(|out| out.is_dir()) {
            return Err(ArtifactError::io("write", &out, std::io::ErrorKind::IsADirectory.into()));
        }
        if let Some(path) = header.filter(|h| !options.force && h.exists() && !header::is_generated(h)) {
            return Err(ArtifactError::OtherHeader { path });
        }
    }
    compiler(options)?;
    Staging::beside(options.out, &place).map(drop)
}

/// Refuses to replace what was made of another model, unless the user wants that. Files that no artifact is in are
/// replaced, as every compiler does, but not ones that are called like the weights. `weights_file` says whether there will be a weights file.
///
/// # Errors
/// [`ArtifactError::OtherModel`].
pub fn check_model(options: &Options, weights_file: bool) -> Result<(), ArtifactError> {
    let ours = options.model_hash;
    let refuse = |path: &Path, what, theirs| Err(ArtifactError::OtherModel { path: path.into(), what, theirs, ours });
    if options.force {
        return Ok(());
    }
    if options.kinds.contains(&Kind::Bundle) {
        if options.out.exists() && bundle::check_place(options.out)? {
            let manifest = read::of_bundle(options.out).ok();
            let theirs = manifest.and_then(|m| u128::from_str_radix(m["model_hash"].as_str()?, 16).ok());
            if theirs != Some(ours) {
                return refuse(options.out, "a bundle", theirs);
            }
        }
        return Ok(());
    }
    for out in options.kinds.iter().filter(|k| k.runs()).map(|&k| options.file(k)).filter(|out| out.is_file()) {
        if let Ok(manifest) = read::of_file(&out)
            && manifest.model_hash != ours.to_le_bytes()
        {
            return refuse(&out, "code", manifest.model_hash.try_into().ok().map(u128::from_le_bytes));
        }
    }
    let file = options.out.with_file_name(options.weights_file());
    if weights_file && options.kinds.iter().any(|k| k.runs()) && file.is_file() {
        let header = crate::onnx::map_file(&file).ok().and_then(|f| weights::parse_header(&f).ok());
        let theirs = header.map(|h| h.model).filter(|&h| h != 0);
        if theirs != Some(ours) {
            return refuse(&file, "the weights file", theirs);
        }
    }
    Ok(())
}

/// Compiles a program and writes artifacts.
///
/// # Errors
/// When something is in the way or a tool is missing, and when the file system refuses; else bugs of ours.
pub fn write(program: &Program, options: &Options) -> Result<Written, ArtifactError> {
    check(options)?;
    let bundle = options.kinds.contains(&Kind::Bundle);
    let place = Place::of(options.out).map_err(|e| ArtifactError::io("write", options.out, e))?;
    let compiler = compiler(options)?;
    let stream = matches!(place, Place::Stream(_));
    let embed_weights = match options.weights {
        WeightsMode::Auto => program.weight_bytes() < EMBED_LIMIT || stream,
        WeightsMode::Embedded => true,
        WeightsMode::External => program.weight_bytes() == 0,
    };
    if stream && !embed_weights {
        return Err(ArtifactError::NoFolder { path: options.out.into() });
    }
    check_model(options, !embed_weights)?;
    let weights_file = options.weights_file();
    let object_options = ObjectOptions {
        name: options.name,
        target: options.target,
        cpus: options.cpus,
        embed_weights,
        weights_file: &weights_file,
        options: options.options,
        model_hash: options.model_hash,
    };
    let mut object = object::emit(program, &object_options)?;
    object.manifest.undefined_symbols = symbols::undefined(&object.bytes, options.name)?;
    let writer = Writer { program, options, staging: Staging::beside(options.out, &place)?, object };
    let mut notes = vec![];
    let paths = if bundle { writer.bundle(compiler.as_deref(), &mut notes)? } else { writer.files(compiler.as_deref())? };
    let manifest = writer.object.manifest;
    if let Place::Name(name) = &place
        && bundle
    {
        writer.staging.place_folder(name)?;
    }
    Ok(Written { paths, notes, manifest })
}

/// The C compiler, where a kind needs it. A bundle does without.
fn compiler(options: &Options) -> Result<Option<PathBuf>, ArtifactError> {
    let required = options.kinds.contains(&Kind::Exe) || (options.kinds.contains(&Kind::Shared) && !options.kinds.contains(&Kind::Bundle));
    match link::find(options.target) {
        Ok(cc) => Ok(Some(cc)),
        Err(e) if required => Err(e),
        Err(_) => Ok(None),
    }
}

struct Writer<'a> {
    program: &'a Program,
    options: &'a Options<'a>,
    staging: Staging,
    object: Object,
}

impl Writer<'_> {
    fn name(&self) -> &str {
        self.options.name
    }

    /// Writes everything into the staging folder.
    fn bundle(&self, cc: Option<&Path>, notes: &mut Vec<String>) -> Result<Vec<PathBuf>, ArtifactError> {
        let (n, o, s) = (self.name(), self.options, &self.staging);
        let interface = Interface::of(&self.object.manifest)?;
        let object = s.write(&format!("{n}.o"), &self.object.bytes)?;
        s.write(&format!("lib{n}.a"), &archive::of(&self.object.bytes, &format!("{n}.o"), o.target)?)?;
        s.write(&format!("{n}.h"), header::text(&interface).as_bytes())?;
        s.write(&format!("{n}.rs"), rust::text(&interface).as_bytes())?;
        let main = s.write("example_main.c", example::main_c(&interface).as_bytes())?;
        s.write("Makefile", example::makefile(n, o.target, &link::compiler_name(o.target)).as_bytes())?;
        s.write(&format!("{n}-config.cmake"), package::cmake(&interface).as_bytes())?;
        s.write(&format!("{n}.pc"), package::pkg_config(&interface).as_bytes())?;
        s.write(&format!("{n}.manifest.json"), json::text(&self.object.manifest).as_bytes())?;
        if let Some((file, _)) = interface.weights_file() {
            s.write_weights(file, self.program, &self.object.weights)?;
        }
        for (extension, contents) in o.extra {
            s.write(&format!("{n}.{extension}"), contents)?;
        }
        match cc {
            Some(cc) => self.link_shared(cc, &object, &format!("{n}.so"), &s.inside.join(format!("{n}.so")))?,
            None => notes.push(format!(
                "the bundle has no {n}.so, since there is no `{}` in the search path; everything else is there",
                link::compiler_name(o.target)
            )),
        }
        for &kind in o.kinds {
            match kind {
                Kind::Bundle | Kind::Obj | Kind::Lib | Kind::Shared => {}
                Kind::Asm | Kind::Clif => {
                    let text = self.listing(kind)?;
                    s.write(&format!("{n}.{}", kind.extension().unwrap_or_default()), text.as_bytes())?;
                }
                Kind::Exe => {
                    if let Some(cc) = cc {
                        link::executable(cc, &main, &object, &s.inside.join("example_main"))?;
                    }
                }
            }
        }
        Ok(vec![o.out.into()])
    }

    /// Writes single files and puts them in place.
    fn files(&self, cc: Option<&Path>) -> Result<Vec<PathBuf>, ArtifactError> {
        let (n, o, s) = (self.name(), self.options, &self.staging);
        let interface = Interface::of(&self.object.manifest)?;
        let mut ready = vec![];
        for &kind in o.kinds {
            let out = o.file(kind);
            let file = match kind {
                Kind::Bundle => continue,
                Kind::Obj => s.write("out.o", &self.object.bytes)?,
                Kind::Lib => s.write("out.a", &archive::of(&self.object.bytes, &format!("{n}.o"), o.target)?)?,
                Kind::Asm | Kind::Clif => s.write(kind.extension().unwrap_or_default(), self.listing(kind)?.as_bytes())?,
                Kind::Shared | Kind::Exe => {
                    let object = s.write(&format!("{n}.o"), &self.object.bytes)?;
                    let file = s.inside.join("out.linked");
                    let file = if kind == Kind::Exe { file.with_extension("exe") } else { file };
                    // Without a compiler these kinds have been refused.
                    let Some(cc) = cc else { continue };
                    if kind == Kind::Exe {
                        s.write(&format!("{n}.h"), header::text(&interface).as_bytes())?;
                        let main = s.write("main.c", example::main_c(&interface).as_bytes())?;
                        link::executable(cc, &main, &object, &file)?;
                    } else {
                        let soname = out.file_name().map_or_else(|| format!("{n}.so"), |f: &OsStr| f.to_string_lossy().into_owned());
                        self.link_shared(cc, &object, &soname, &file)?;
                    }
                    file
                }
            };
            ready.push((file, out));
        }
        if let Some(out) = o.header_file() {
            ready.push((s.write("out.h", header::text(&interface).as_bytes())?, out));
        }
        if let Some((file, _)) = interface.weights_file()
            && o.kinds.iter().any(|k| k.runs())
        {
            ready.push((s.write_weights(file, self.program, &self.object.weights)?, o.out.with_file_name(file)));
        }
        // A folder in the way of one of them shall not leave the others without it.
        if let Some((_, out)) = ready.iter().find(|(_, out)| out.is_dir()) {
            return Err(ArtifactError::io("write", out, std::io::ErrorKind::IsADirectory.into()));
        }
        // Code is where it belongs when its weights are.
        ready.reverse();
        files::put_all(&ready).map_err(|(out, e)| ArtifactError::io("write", out, e))?;
        ready.reverse();
        Ok(ready.into_iter().map(|(_, out)| out).collect())
    }

    fn link_shared(&self, cc: &Path, object: &Path, soname: &str, out: &Path) -> Result<(), ArtifactError> {
        link::shared(cc, object, soname, !self.object.manifest.undefined_symbols.is_empty(), out)
    }

    fn listing(&self, kind: Kind) -> Result<String, ArtifactError> {
        match kind {
            Kind::Clif => asm::clif(self.program, self.options),
            _ => asm::listing(&self.object.bytes, self.program, self.options),
        }
    }
}
