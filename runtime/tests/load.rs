//! Loads and runs artifacts made from `double.c` by the system's C compiler: the ABI as C sees it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;
use tfc_runtime::manifest::{self, Manifest};
use tfc_runtime::weights::{self, Header};
use tfc_runtime::{Buffer, Elem, Error, LoadOptions, Model, Pool, Session, View};

/// Whether there is a C compiler. Tests that need one say so loudly when there is none.
static HAVE_CC: LazyLock<bool> = LazyLock::new(|| Command::new("cc").arg("--version").output().is_ok_and(|o| o.status.success()));

macro_rules! need_cc {
    () => {
        if !*HAVE_CC {
            // Not by a macro that prints: those are captured from tests that pass.
            let _ = writeln!(std::io::stderr(), "SKIPPED: this test needs a C compiler called `cc`, and there is none");
            return;
        }
    };
}

fn manifest_of(name: &str, data: &[u8]) -> Manifest {
    let tensor = |name: &str, elem: &str, shape: &[&str]| manifest::TensorInfo {
        name: name.into(),
        c_name: name.into(),
        elem: elem.into(),
        shape: shape.iter().map(|s| (*s).into()).collect(),
    };
    let symbol = |name: &str, min, max| manifest::Symbol { name: name.into(), min, max, c_name: name.into(), reason: String::new() };
    let variant = |name: &str| manifest::CpuVariant { name: name.into(), ..Default::default() };
    Manifest {
        version: manifest::VERSION,
        abi_version: 1,
        name: name.into(),
        symbols: vec![symbol("batch", 1, 8), symbol("seq", 0, 1_000_000)],
        inputs: vec![tensor("x", "f32", &["batch", "seq"]), tensor("ids", "i64", &["batch"])],
        outputs: vec![tensor("y", "f32", &["batch", "2*seq"]), tensor("count", "i64", &[])],
        checks: vec![manifest::Check { left: "rem(seq, 3)".into(), right: "0".into(), reason: "node `/fold`".into() }],
        weights: Some(manifest::WeightsInfo {
            data_bytes: data.len() as u64,
            hash: weights::content_hash(data).to_le_bytes().to_vec(),
            file: format!("{name}.weights.bin"),
            ..Default::default()
        }),
        cpu_variants: vec![variant("baseline"), variant("twice"), variant("future")],
        arena_align: 64,
        ..Default::default()
    }
}

const WEIGHT: [u8; 4] = 2.5f32.to_ne_bytes();

fn weights_file(data: &[u8]) -> Vec<u8> {
    [&weights::write_header(&Header::of(data))[..], data].concat()
}

/// Runs `cc` in `folder` on `double.c` with the model's `name`, its manifest, and more arguments.
fn compile(folder: &Path, name: &str, manifest: &[u8], output: &str, args: &[&str]) {
    let bytes: Vec<String> = manifest.iter().map(u8::to_string).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/double.c");
    let status = Command::new("cc")
        .current_dir(folder)
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC"])
        .args([format!("-DNAME={name}"), format!("-DMANIFEST={}", bytes.join(","))])
        .args(args)
        .arg(source)
        .args(["-o", output])
        .status()
        .expect("cc runs");
    assert!(status.success());
}

/// A bundle `double/` in a temporary folder, with changes by `-D` arguments and to its manifest.
fn bundle_with(defines: &[&str], change: impl Fn(&mut Manifest)) -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("double");
    std::fs::create_dir(&folder).unwrap();
    let mut manifest = manifest_of("double", &WEIGHT);
    change(&mut manifest);
    compile(&folder, "double", &manifest.encode_bytes(), "double.so", &[&["-shared"], defines].concat());
    std::fs::write(folder.join("double.weights.bin"), weights_file(&WEIGHT)).unwrap();
    (temp, folder)
}

fn bundle() -> (TempDir, PathBuf) {
    bundle_with(&[], |_| {})
}

fn options() -> LoadOptions {
    LoadOptions::default()
}

fn load(path: &Path) -> Result<Model, Error> {
    Model::load_with(path, &options())
}

fn session(path: &Path, threads: usize) -> Session {
    Session::new(Arc::new(load(path).unwrap()), threads).unwrap()
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_ne_bytes()).collect()
}

fn as_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|c| f32::from_ne_bytes(c.try_into().unwrap())).collect()
}

fn as_ints(bytes: &[u8]) -> Vec<i64> {
    bytes.chunks_exact(8).map(|c| i64::from_ne_bytes(c.try_into().unwrap())).collect()
}

/// Runs with `batch` x `seq` and returns `y` and `count`.
fn run(session: &mut Session, batch: usize, seq: usize) -> Result<(Vec<f32>, i64), Error> {
    let (x, ids) = (floats(batch * seq), vec![0; 8 * batch]);
    let inputs =
        [("ids", View { elem: Elem::I64, shape: &[batch], data: &ids }), ("x", View { elem: Elem::F32, shape: &[batch, seq], data: &x })];
    let outputs = session.run(&inputs)?;
    assert_eq!(outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["y", "count"]);
    assert_eq!(outputs[0].shape, [batch, 2 * seq]);
    assert_eq!(outputs[1].shape, [0usize; 0]);
    Ok((as_floats(&outputs[0].data), as_ints(&outputs[1].data)[0]))
}

fn expected(batch: usize, seq: usize, weight: f32) -> Vec<f32> {
    (0..2 * batch * seq).map(|i| weight * (i / 2) as f32).collect()
}

#[track_caller]
fn assert_error<T>(result: Result<T, Error>, wanted: &str) {
    match result {
        Ok(_) => panic!("no error, but expected: {wanted}"),
        Err(e) => assert!(e.to_string().contains(wanted), "got: {e}\nexpected: {wanted}"),
    }
}

#[test]
fn a_bundle_runs() {
    need_cc!();
    let (_temp, folder) = bundle();
    for path in [folder.clone(), folder.join("double.so")] {
        for threads in [1, 2, 4] {
            let mut s = session(&path, threads);
            for (batch, seq) in [(1, 3), (8, 30), (2, 300_000), (1, 0), (5, 6)] {
                assert_eq!(run(&mut s, batch, seq).unwrap(), (expected(batch, seq, 2.5), batch as i64));
            }
        }
    }
}

#[test]
fn a_model_tells_what_it_is() {
    need_cc!();
    let (_temp, folder) = bundle();
    let model = load(&folder).unwrap();
    assert_eq!(model.manifest(), &manifest_of("double", &WEIGHT));
    assert_eq!(model.inputs()[0].type_text(), "f32[batch, seq]");
    assert_eq!(model.outputs()[1].type_text(), "i64[]");
    assert_eq!(model.symbols()[1].max, 1_000_000);
    assert_eq!(model.build_info(), "by hand");
    assert_eq!(model.cpu_variant(), "twice");
    let dims = model.dims(&[("batch", 2), ("seq", 6)]).unwrap();
    assert_eq!(dims, model.dims_from_shapes(&[("x", &[2, 6]), ("ids", &[2])]).unwrap());
    assert_eq!((dims.values(), dims.get("seq"), dims.get("other")), (&[2, 6][..], Some(6), None));
    assert_eq!(model.arena_bytes(&dims).unwrap(), 128);
    assert_eq!(model.output_bytes(&dims).unwrap(), [96, 8]);
    model.verify_weights().unwrap();
}

#[test]
fn embedded_weights_need_no_file() {
    need_cc!();
    let (_temp, folder) = bundle_with(&["-DFLAGS=1"], |_| {});
    std::fs::remove_file(folder.join("double.weights.bin")).unwrap();
    assert_eq!(run(&mut session(&folder, 1), 2, 3).unwrap().0, expected(2, 3, 3.0));
    load(&folder).unwrap().verify_weights().unwrap();
    let file = LoadOptions { weights: Some(folder.join("other.bin")), ..options() };
    assert_error(Model::load_with(&folder, &file), "holds its own weights");
}

#[test]
fn code_in_memory_runs() {
    need_cc!();
    let (_temp, folder) = bundle();
    // SAFETY: the library is made by this test, and has the entry that it is made to have.
    #[allow(unsafe_code, reason = "makes an entry in memory out of a loaded library")]
    let model = unsafe {
        let library = libloading::Library::new(folder.join("double.so")).unwrap();
        let entry: *const tfc_runtime::abi::Entry = *library.get("double_entry").unwrap();
        let weights = Buffer::copy_of(&weights_file(&WEIGHT)).unwrap();
        let missing = Model::from_entry(entry, Box::new(()), tfc_runtime::Weights::Embedded, None);
        assert_error(missing, "the model needs the contents of its weights file");
        let other = Buffer::copy_of(&weights_file(b"other weights")).unwrap();
        assert_error(Model::from_entry(entry, Box::new(()), other.into(), None), "the weights belongs to another compilation");
        Model::from_entry(entry, Box::new(library), weights.into(), Some("baseline")).unwrap()
    };
    assert_eq!(model.cpu_variant(), "baseline");
    let mut s = Session::with_pool(Arc::new(model), Arc::new(Pool::new(2).unwrap()));
    assert_eq!(run(&mut s, 3, 3).unwrap().0, expected(3, 3, 2.5));
}

#[test]
fn a_model_is_found_by_name_file_or_alone() {
    need_cc!();
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    std::fs::write(folder.join("w"), weights_file(&WEIGHT)).unwrap();
    for name in ["one", "two"] {
        compile(folder, name, &manifest_of(name, &WEIGHT).encode_bytes(), &format!("{name}.o"), &["-c"]);
    }
    for (output, objects) in [("any.so", &["one.o"][..]), ("both.so", &["one.o", "two.o"]), ("libtwo.so", &["one.o", "two.o"])] {
        let linked = Command::new("cc").current_dir(folder).args(["-shared", "-o", output]).args(objects).status().unwrap();
        assert!(linked.success());
    }
    let name_of = |file: &str, name: Option<&str>| {
        let o = LoadOptions { weights: Some(folder.join("w")), name: name.map(Into::into), ..options() };
        Model::load_with(folder.join(file), &o).map(|m| m.manifest().name.clone())
    };
    assert_eq!(name_of("any.so", None).unwrap(), "one");
    assert_eq!(name_of("libtwo.so", None).unwrap(), "two");
    assert_eq!(name_of("both.so", Some("two")).unwrap(), "two");
    assert_error(name_of("both.so", None), "it holds several models, so say which one: `one`, `two`");
    assert_error(name_of("both.so", Some("three")), "it does not hold a model of that name, but `one`, `two`");
    assert_error(name_of("one.o", None), "it is a relocatable object");
    assert_error(load(folder), "it has several shared objects, so name one of them: `any`, `both`, `libtwo`");
}

#[test]
fn other_files_are_not_loaded() {
    need_cc!();
    let temp = tempfile::tempdir().unwrap();
    let file = |name: &str, contents: &[u8]| {
        let path = temp.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    };
    assert_error(load(&temp.path().join("none.so")), "cannot open");
    assert_error(load(temp.path()), "it is not a bundle: it has no .so");
    assert_error(load(&file("x.a", b"!<arch>\n")), "it is a static library");
    assert_error(load(temp.path()), "made without a system linker");
    assert_error(load(&file("text.so", b"hello")), "it is not a shared object");
    assert_error(load(&file("cut.so", b"\x7fELF\x02\x01\x01")), "or it is damaged");

    let (_temp, folder) = bundle();
    let object = std::fs::read(folder.join("double.so")).unwrap();
    assert_error(load(&file("half.so", &object[..object.len() / 2])), "or it is damaged");
    std::fs::write(temp.path().join("empty.c"), "int one_entry = 1;\n").unwrap();
    let cc = Command::new("cc").current_dir(temp.path()).args(["-shared", "-fPIC", "empty.c", "-o", "empty.so"]).status().unwrap();
    assert!(cc.success());
    assert_error(load(&temp.path().join("empty.so")), "it exports no `NAME_entry`: tfc did not make it");
}

#[test]
fn incompatible_entries_are_refused() {
    need_cc!();
    let refused = |defines: &[&str], change: &dyn Fn(&mut Manifest), wanted: &str| {
        let (_temp, folder) = bundle_with(defines, change);
        assert_error(load(&folder), wanted);
    };
    refused(&["-DMAGIC=\"TFCENTRX\""], &|_| {}, "does not begin with the magic of one");
    refused(&["-DVERSION=2"], &|_| {}, "the version of its entry is 2 and this runtime knows 1");
    refused(&["-DABI=7"], &|_| {}, "the version of its ABI is 7 and this runtime knows 1");
    refused(&["-DNULL_FUNCTION"], &|_| {}, "its entry has null pointers");
    refused(&["-DDIMS=3"], &|_| {}, "its entry says [3, 2, 2] symbols, inputs and outputs, and its manifest [2, 2, 2]");
    refused(&[], &|m| m.version = 9, "the manifest has version 9 and this runtime reads up to version 1");
    refused(&[], &|m| m.inputs[0].elem = "f31".into(), "`x` has the unknown element type `f31`");
    refused(&[], &|m| m.inputs[0].shape[1] = "2*".into(), "`x`: `2*` is not a dimension expression: at byte 2");
    refused(&[], &|m| m.weights.as_mut().unwrap().file = "../double.weights.bin".into(), "which is not a plain file name");
    let (_temp, folder) = bundle();
    compile(&folder, "double", &[0xff; 40], "double.so", &["-shared"]);
    assert_error(load(&folder), "the manifest cannot be decoded");
}

#[test]
fn wrong_weights_are_refused() {
    need_cc!();
    let (_temp, folder) = bundle();
    let path = folder.join("double.weights.bin");
    let with = |bytes: &[u8], wanted: &str| {
        std::fs::write(&path, bytes).unwrap();
        assert_error(load(&folder), wanted);
    };
    let good = weights_file(&WEIGHT);
    with(&good[..4098], "it ends after 4098 bytes where 4100 are needed");
    with(&[&good[..], b"x"].concat(), "it has 4101 bytes where its header says 4100");
    with(b"", "it ends after 0 bytes");
    with(&[b"X", &good[1..]].concat(), "this is not a weights file");
    with(&weights_file(&1.5f32.to_ne_bytes()), "belongs to another compilation: the code expects 4 bytes with the hash");
    std::fs::remove_file(&path).unwrap();
    assert_error(load(&folder), "double.weights.bin");

    // Damage behind the header is found only by reading everything.
    let mut damaged = good;
    damaged[4097] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    assert_error(load(&folder).unwrap().verify_weights(), "where the header says");
}

#[test]
fn cpu_variants_are_chosen_by_name() {
    need_cc!();
    let (_temp, folder) = bundle();
    let with = |cpu: &str| Model::load_with(&folder, &LoadOptions { cpu: Some(cpu.into()), ..options() });
    assert_eq!(with("baseline").unwrap().cpu_variant(), "baseline");
    assert_error(
        with("avx9"),
        "CPU variant `avx9`: the object has no CPU variant of this name (the model has: `baseline`, `twice`, `future`)",
    );
    assert_error(with("future"), "CPU variant `future`: the requested CPU variant cannot run on this CPU");
    assert_error(with("a\0b"), "no zero byte");
}

#[test]
fn wrong_inputs_are_refused() {
    need_cc!();
    let (_temp, folder) = bundle();
    let mut s = session(&folder, 1);
    let bytes = vec![0; 4096];
    let view = |elem, shape: &'static [usize], len: usize| View { elem, shape, data: &bytes[..len] };
    let x = ("x", view(Elem::F32, &[2, 3], 24));
    let ids = ("ids", view(Elem::I64, &[2], 16));
    s.run(&[x, ids]).unwrap();
    let mut refused = |inputs: &[(&str, View<'_>)], wanted: &str| assert_error(s.run(inputs), wanted);
    refused(&[x], "input `ids` is missing: expected i64[batch] (given: `x`)");
    refused(&[x, ids, x], "input `x` is given twice");
    refused(&[x, ids, ("z", ids.1)], "the model has no input `z` (it has: `x`, `ids`)");
    refused(&[("x", view(Elem::F64, &[2, 3], 48)), ids], "input `x`: expected f32[batch, seq], got f64[2, 3]");
    refused(&[("x", view(Elem::F32, &[6], 24)), ids], "input `x`: expected f32[batch, seq], got f32[6]");
    refused(&[("x", view(Elem::F32, &[3, 3], 36)), ids], "`batch` is 3 by input `x` (axis 0), but 2 by input `ids` (axis 0)");
    refused(&[("x", view(Elem::F32, &[2, 3], 20)), ids], "input `x`: expected 24 bytes for f32[2, 3], got 20");
    refused(&[("x", view(Elem::F32, &[2, 4], 32)), ids], "node `/fold` needs `rem(seq, 3)` = `0`, but these are 1 and 0");
    refused(
        &[("x", view(Elem::F32, &[0, 3], 0)), ("ids", view(Elem::I64, &[0], 0))],
        "dimension `batch` is 0 by input `x` (axis 0), outside of 1..8",
    );
    refused(&[("x", view(Elem::F32, &[2, usize::MAX], 24)), ids], "dimension `seq` is 9223372036854775807");
}

#[test]
fn wrong_buffers_are_refused() {
    need_cc!();
    let (_temp, folder) = bundle();
    let mut s = session(&folder, 1);
    let dims = s.model().dims(&[("batch", 1), ("seq", 3)]).unwrap();
    let (x, ids) = (Buffer::copy_of(&floats(3)).unwrap(), Buffer::new(8).unwrap());
    let (mut y, mut count) = (Buffer::new(25).unwrap(), Buffer::new(8).unwrap());
    assert_error(s.run_into(&dims, &[&x], &mut [&mut y[..24], &mut count]), "inputs: expected 2 buffers, got 1");
    assert_error(s.run_into(&dims, &[&x, &ids], &mut []), "outputs: expected 2 buffers, got 0");
    assert_error(s.run_into(&dims, &[&x[..8], &ids], &mut [&mut y[..24], &mut count]), "input `x`: expected 12 bytes for f32[1, 3], got 8");
    assert_error(s.run_into(&dims, &[&x, &ids], &mut [&mut y, &mut count]), "output `y`: expected 24 bytes for f32[1, 6], got 25");
    assert_error(s.run_into(&dims, &[&x, &ids], &mut [&mut y[1..], &mut count]), "output `y`: expected an address that is a multiple of 4");
    s.run_into(&dims, &[&x, &ids], &mut [&mut y[..24], &mut count]).unwrap();
    assert_eq!(as_floats(&y[..24]), expected(1, 3, 2.5));

    // Inputs at odd addresses are copied.
    let shifted: Vec<Buffer> = [&x, &ids].map(|b| Buffer::copy_of(&[&[0], &b[..]].concat()).unwrap()).into();
    y.fill(0);
    s.run_into(&dims, &[&shifted[0][1..], &shifted[1][1..]], &mut [&mut y[..24], &mut count]).unwrap();
    assert_eq!(as_floats(&y[..24]), expected(1, 3, 2.5));
}

#[test]
fn dimensions_of_another_model_are_refused() {
    need_cc!();
    let (_temp, folder) = bundle();
    let (_other_temp, other) = bundle_with(&[], |m| {
        m.symbols[1].name = "length".into();
        m.inputs[0].shape[1] = "length".into();
        m.outputs[0].shape[1] = "2*length".into();
        m.checks.clear();
    });
    let dims = load(&other).unwrap().dims(&[("batch", 1), ("length", 3)]).unwrap();
    let model = load(&folder).unwrap();
    assert_error(model.arena_bytes(&dims), "dimensions: expected values for `batch`, `seq`, got values for `batch`, `length`");
    assert_error(model.dims(&[("batch", 1)]), "the value of dimension `seq` (0..1000000) does not follow");
    assert_error(model.dims(&[("batch", 1), ("len", 3)]), "the model has no dimension `len` (it has: `batch`, `seq`)");
}

#[test]
fn a_manifest_that_contradicts_the_code_is_noticed() {
    need_cc!();
    let (_temp, folder) = bundle_with(&["-DDECLARED_ROW=3"], |_| {});
    assert_error(run(&mut session(&folder, 1), 1, 3), "output `y`: expected 24 bytes by the manifest, got 36 by the code");
}

#[test]
fn a_status_of_the_code_becomes_an_error() {
    need_cc!();
    let (_temp, folder) = bundle();
    let mut s = session(&folder, 2);
    let ids = (-1i64).to_ne_bytes();
    let inputs =
        [("x", View { elem: Elem::F32, shape: &[1, 3], data: &floats(3) }), ("ids", View { elem: Elem::I64, shape: &[1], data: &ids })];
    let error = s.run(&inputs).unwrap_err();
    assert_eq!(error.status(), Some(tfc_runtime::abi::Status::IndexRange));
    assert_eq!(error.to_string(), "double_run failed with status 14: an index is outside of the tensor that it selects from");
    assert_eq!(run(&mut s, 1, 3).unwrap().0, expected(1, 3, 2.5));
}

#[test]
fn sessions_run_at_the_same_time() {
    need_cc!();
    let (_temp, folder) = bundle();
    let model = Arc::new(load(&folder).unwrap());
    let pool = Arc::new(Pool::new(2).unwrap());
    std::thread::scope(|scope| {
        for seq in [3, 6, 9, 12] {
            let (model, pool) = (model.clone(), pool.clone());
            scope.spawn(move || {
                let mut s = Session::with_pool(model, pool);
                for batch in (1..=8).cycle().take(200) {
                    assert_eq!(run(&mut s, batch, seq).unwrap(), (expected(batch, seq, 2.5), batch as i64));
                }
            });
        }
    });
}
