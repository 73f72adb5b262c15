//! The code of a model behind safe functions: finding the entry in a shared object, checking it, and
//! calling through it. With the pool, the only place that touches foreign code and memory.
#![allow(unsafe_code, reason = "loads and calls foreign code through the C ABI")]

use crate::abi::{self, Context, Entry, ParallelForFn, Status, entry_offset};
use crate::elf;
use crate::error::{Error, list};
use crate::manifest::Manifest;
use libloading::Library;
use memmap2::Mmap;
use std::any::Any;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::Mutex;

// SAFETY: a context is written by `init` only; afterwards it is a read-only pointer into weights that
// nobody writes.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The functions of a model, and what keeps them in memory.
pub(crate) struct Code {
    /// "the model" or the file, for errors.
    pub(crate) origin: String,
    pub(crate) embedded_weights: bool,
    /// Numbers of symbols, inputs and outputs.
    pub(crate) counts: [u32; 3],
    init_cpu: abi::InitCpuFn,
    cpu_variant: abi::CpuVariantFn,
    arena_bytes: abi::ArenaBytesFn,
    output_bytes: abi::OutputBytesFn,
    run_parallel: abi::RunParallelFn,
    status_string: abi::StatusStringFn,
    build_info: abi::BuildInfoFn,
    _owner: Owner,
}

/// Keeps code in memory until it is dropped.
enum Owner {
    Library(#[expect(dead_code, reason = "held to be dropped")] Library),
    Memory(#[expect(dead_code, reason = "held to be dropped")] Mutex<Box<dyn Any + Send>>),
}

/// Maps a regular file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Mmap, Error> {
    let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
    let file = crate::file::open(path).map_err(io("open"))?;
    // SAFETY: the contract of every loader: who changes a file while it is in use gets what they ask for.
    unsafe { Mmap::map(&file) }.map_err(io("map"))
}

/// Loads the shared object at `path` and reads the manifest of the model `name`, or of its only model.
pub(crate) fn open(path: &Path, name: Option<&str>) -> Result<(Code, Manifest), Error> {
    let not_loadable = |reason| Error::NotLoadable { path: path.to_owned(), reason };
    // A path without a folder would be searched for in the folders of the system's libraries.
    let full = path.canonicalize().map_err(|source| Error::Io { action: "open", path: path.to_owned(), source })?;
    let symbol = entry_symbol(&full, name).map_err(not_loadable)?;
    // SAFETY: running the initialisers of a library is what loading it means; those of tfc have none.
    let library = unsafe { Library::new(&full) }.map_err(|e| not_loadable(format!("the system's loader says: {e}")))?;
    // SAFETY: only the address of the symbol is used; `read_entry` checks what is there.
    let entry: *const Entry = match unsafe { library.get(symbol.as_bytes()) } {
        Ok(address) => *address,
        Err(e) => return Err(not_loadable(format!("it has no symbol `{symbol}`: {e}"))),
    };
    if entry.is_null() {
        return Err(not_loadable(format!("its symbol `{symbol}` is null")));
    }
    let origin = format!("`{}`", path.display());
    // SAFETY: the symbol is an exported object of at least an entry's size, where that can be known.
    unsafe { read_entry(entry, origin, Owner::Library(library)) }
}

/// The code behind an entry in memory, and its manifest. `owner` keeps it there.
///
/// # Safety
///
/// `entry` points to the entry of code that `tfc` compiled, which stays valid while `owner` lives.
pub(crate) unsafe fn from_entry(entry: *const Entry, owner: Box<dyn Any + Send>) -> Result<(Code, Manifest), Error> {
    // SAFETY: as the caller promises.
    unsafe { read_entry(entry, "the model".into(), Owner::Memory(Mutex::new(owner))) }
}

/// The symbol of the entry: `NAME_entry`, where NAME is `name`, or that of the only such object in the
/// file, or, if there are several, the one that the file is named after.
fn entry_symbol(path: &Path, name: Option<&str>) -> Result<String, String> {
    let stem = path.file_name().and_then(|s| s.to_str()).and_then(|s| s.split('.').next()).unwrap_or_default();
    let wanted = match name {
        Some(name) => vec![name],
        None => vec![stem, stem.strip_prefix("lib").unwrap_or(stem)],
    };
    let wanted: Vec<String> = wanted.iter().map(|s| format!("{s}{}", abi::ENTRY_SUFFIX)).collect();
    let file = map_file(path).map_err(|e| e.to_string())?;
    match file.get(..4) {
        Some(b"\x7fELF") => {}
        Some(b"!<ar") => {
            return Err("it is a static library: load the .so of the bundle, or make one with `cc -shared -Wl,--whole-archive`".into());
        }
        _ if cfg!(target_os = "linux") => return Err("it is not a shared object".into()),
        // On systems whose format is not ELF, the name of the file is all there is.
        _ => return Ok(wanted[wanted.len() - 1].clone()),
    }
    if file.get(16..18) == Some(&1u16.to_ne_bytes()) {
        return Err("it is a relocatable object: load the .so of the bundle, or make one with `cc -shared`".into());
    }
    let found = elf::exported_objects(&file, abi::ENTRY_SUFFIX, entry_offset::END as u64)
        .ok_or("it is not an ELF object of this machine's kind, or it is damaged")?;
    let names = || list(found.iter().filter_map(|s| s.strip_suffix(abi::ENTRY_SUFFIX)));
    match (found.as_slice(), wanted.into_iter().find(|s| found.contains(s))) {
        ([], _) => Err("it exports no `NAME_entry`: tfc did not make it".into()),
        (_, Some(symbol)) => Ok(symbol),
        ([only], None) if name.is_none() => Ok(only.clone()),
        (_, None) if name.is_some() => Err(format!("it does not hold a model of that name, but {}", names())),
        _ => Err(format!("it holds several models, so say which one: {}", names())),
    }
}

/// # Safety
///
/// `entry` is readable for the bytes of an [`Entry`], and if these are the ones of an entry, then that
/// entry is valid while `owner` lives.
unsafe fn read_entry(entry: *const Entry, origin: String, owner: Owner) -> Result<(Code, Manifest), Error> {
    let incompatible = |reason: String| Error::Incompatible { origin: origin.clone(), reason };
    if !entry.is_aligned() {
        return Err(incompatible("its entry is not aligned".into()));
    }
    // SAFETY: readable as the caller promises, and plain numbers have no invalid values.
    let words = unsafe { entry.cast::<[u64; entry_offset::END / 8]>().read() };
    let half = |offset: usize| {
        let bytes = words[offset / 8].to_ne_bytes();
        let at = offset % 8;
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    if words[0] != abi::ENTRY_MAGIC {
        return Err(incompatible("its entry does not begin with the magic of one: tfc did not make it".into()));
    }
    for (what, actual, expected) in [
        ("the version of its entry", half(entry_offset::VERSION), abi::ENTRY_VERSION),
        ("the version of its ABI", half(entry_offset::ABI_VERSION), abi::ABI_VERSION),
        ("the size of its context", half(entry_offset::CONTEXT_BYTES), abi::CONTEXT_BYTES as u32),
    ] {
        if actual != expected {
            return Err(incompatible(format!(
                "{what} is {actual} and this runtime knows {expected}: use the runtime that belongs to the compiler"
            )));
        }
    }
    let bytes = half(entry_offset::BYTES) as usize;
    if bytes < entry_offset::END || words[entry_offset::MANIFEST / 8] == 0 || words[entry_offset::INIT / 8..].contains(&0) {
        return Err(incompatible("its entry has null pointers or is too short".into()));
    }
    // SAFETY: an entry of this version, whose function pointers are not null.
    let e = unsafe { entry.read() };
    // SAFETY: as the entry says.
    let manifest = unsafe { std::slice::from_raw_parts(e.manifest, e.manifest_bytes as usize) };
    let manifest = Manifest::decode_bytes(manifest).map_err(|source| Error::Manifest { origin: origin.clone(), source })?;
    let code = Code {
        embedded_weights: e.flags & abi::FLAG_EMBEDDED_WEIGHTS != 0,
        counts: [e.dims, e.inputs, e.outputs],
        init_cpu: e.init_cpu,
        cpu_variant: e.cpu_variant,
        arena_bytes: e.arena_bytes,
        output_bytes: e.output_bytes,
        run_parallel: e.run_parallel,
        status_string: e.status_string,
        build_info: e.build_info,
        _owner: owner,
        origin,
    };
    Ok((code, manifest))
}

impl Code {
    /// `NAME_init_cpu`. The context refers to `weights`, which must not be dropped or written before it.
    pub(crate) fn init(&self, weights: Option<&[u8]>, variant: Option<&CStr>) -> Result<Context, i32> {
        let mut context = Context::EMPTY;
        let (data, bytes) = weights.map_or((std::ptr::null(), 0), |w| (w.as_ptr(), w.len()));
        let variant = variant.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the function's contract: a context to write, bytes to read, and a string or null.
        match unsafe { (self.init_cpu)(&mut context, data.cast(), bytes, variant) } {
            0 => Ok(context),
            code => Err(code),
        }
    }

    /// `NAME_cpu_variant`.
    pub(crate) fn cpu_variant(&self, context: &Context) -> String {
        // SAFETY: a context of this code; the string is constant.
        unsafe { text((self.cpu_variant)(context)) }
    }

    /// `NAME_arena_bytes`. `dims` has as many elements as there are symbols.
    pub(crate) fn arena_bytes(&self, dims: &[i64]) -> usize {
        assert_eq!(dims.len(), self.counts[0] as usize);
        // SAFETY: reads one number per symbol.
        unsafe { (self.arena_bytes)(dims.as_ptr()) }
    }

    /// `NAME_output_bytes`. `dims` has as many elements as there are symbols.
    pub(crate) fn output_bytes(&self, dims: &[i64]) -> Result<Vec<usize>, i32> {
        assert_eq!(dims.len(), self.counts[0] as usize);
        let mut out = vec![0; self.counts[2] as usize];
        // SAFETY: reads one number per symbol and writes one per output.
        match unsafe { (self.output_bytes)(dims.as_ptr(), out.as_mut_ptr()) } {
            0 => Ok(out),
            code => Err(code),
        }
    }

    /// `NAME_run_parallel`, on this thread alone without a `callback`.
    ///
    /// # Safety
    ///
    /// `context` is from [`Code::init`], perhaps with flags, and its weights are there. The callback
    /// keeps the contract of [`ParallelForFn`] and lives. The slices have one element per
    /// symbol, input and output; each input and output, and the arena, has at least the bytes and the
    /// alignment that the dimensions require, and none that is written overlaps another.
    pub(crate) unsafe fn run(
        &self,
        context: &Context,
        dims: &[i64],
        inputs: &[*const c_void],
        outputs: &[*mut c_void],
        arena: &mut [u8],
        callback: Option<(ParallelForFn, *mut c_void)>,
    ) -> i32 {
        let (pf, user) = callback.map_or((None, std::ptr::null_mut()), |(pf, user)| (Some(pf), user));
        // SAFETY: as the caller promises.
        unsafe { (self.run_parallel)(context, dims.as_ptr(), inputs.as_ptr(), outputs.as_ptr(), arena.as_mut_ptr().cast(), pf, user) }
    }

    /// `NAME_status_string`.
    pub(crate) fn status_string(&self, code: i32) -> String {
        // SAFETY: any number is allowed; the string is constant.
        unsafe { text((self.status_string)(code)) }
    }

    /// `NAME_build_info`.
    pub(crate) fn build_info(&self) -> String {
        // SAFETY: the string is constant.
        unsafe { text((self.build_info)()) }
    }

    /// The error for a status that `function` returned.
    pub(crate) fn status_error(&self, function: String, code: i32) -> Error {
        let sentence = match Status::from_code(code) {
            Some(status) => status.sentence().to_owned(),
            None => self.status_string(code),
        };
        Error::Status { function, code, sentence }
    }
}

/// # Safety
///
/// `s` is null or a string of C that outlives the call.
unsafe fn text(s: *const c_char) -> String {
    if s.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
}
