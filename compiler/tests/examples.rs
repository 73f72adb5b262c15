//! The programs under `examples` build and run as their files say, in a copy beside a copy of the fixtures.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the compiler is a folder of the workspace").into()
}

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no `{tool}`");
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), &to).unwrap();
        } else if entry.file_name() == "src" {
            copy(&entry.path(), &to);
        }
    }
}

/// A copy of an example with its fixtures, without what earlier builds left in it.
fn example(name: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    copy(&root().join("fixtures"), &folder.path().join("fixtures"));
    let example = folder.path().join("examples").join(name);
    copy(&root().join("examples").join(name), &example);
    (folder, example)
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn make(folder: &Path) -> String {
    let tfc = format!("TFC={}", env!("CARGO_BIN_EXE_tfc"));
    stdout(Command::new("make").args(["-s", "run", &tfc]).current_dir(folder).env_remove("CFLAGS").env_remove("CC"))
}

/// An IDX file with a black and a white picture.
fn idx(path: &Path) {
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28];
    bytes.resize(16 + 28 * 28, 0);
    bytes.resize(16 + 2 * 28 * 28, 255);
    fs::write(path, bytes).unwrap();
}

#[test]
fn c_and_rust_classify_alike() {
    if !has("make") || !has("cc") {
        return;
    }
    let (_keep, c) = example("c");
    assert!(make(&c).starts_with("picture 0: trousers ("));
    idx(&c.join("two.idx"));
    let answers = stdout(Command::new(c.join("classify")).args(["two.idx", "7"]).current_dir(&c));
    assert_eq!(answers.lines().count(), 2, "{answers}");
    let pictures = |n: &str| Command::new(c.join("classify")).args(["two.idx", n]).current_dir(&c).output().unwrap();
    let none = pictures("0");
    assert!(none.status.success() && none.stdout.is_empty());
    let bad = pictures("-1");
    assert!(!bad.status.success() && String::from_utf8_lossy(&bad.stderr).contains("range"));

    let (_keep, rust) = example("rust");
    idx(&rust.join("two.idx"));
    let run = |argument: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["run", "--quiet", "--offline", "--"]).args(argument).current_dir(&rust);
        stdout(cargo.env("TFC", env!("CARGO_BIN_EXE_tfc")).env("CARGO_TARGET_DIR", rust.join("target")))
    };
    assert_eq!(run(&["two.idx"]), answers);
    assert!(run(&[]).starts_with("picture 0: trousers ("));
}

#[test]
fn two_models_agree() {
    if !has("make") || !has("cc") {
        return;
    }
    let (_keep, folder) = example("two_models");
    let text = make(&folder);
    assert!(text.contains("plain ") && text.contains("fast ") && text.contains("largest difference"), "{text}");
}

#[test]
fn sentences_are_compared() {
    if !has("make") || !has("cc") {
        return;
    }
    let (_keep, folder) = example("sentences");
    let numbers = |line: &str| line.split_whitespace().take(3).map(|x| x.parse::<f64>().unwrap()).collect::<Vec<_>>();
    let rows: Vec<Vec<f64>> = make(&folder).lines().map(numbers).collect();
    assert_eq!(rows.len(), 3);
    for i in 0..3 {
        assert_eq!(rows[i][i], 1.0);
        assert!((0..3).all(|j| rows[i][j] == rows[j][i] && (i == j || rows[i][j].abs() < 0.99)), "{rows:?}");
    }
    let run = |arguments: &[&str]| Command::new(folder.join("similar")).args(arguments).current_dir(&folder).output().unwrap();
    let vocabulary = "../../fixtures/sentences_vocab.txt";
    let twice = run(&[vocabulary, "A DOG", "a  dog"]);
    assert!(String::from_utf8_lossy(&twice.stdout).lines().all(|line| line.contains(" 1.0000  1.0000 ")), "{twice:?}");
    for (arguments, text) in [(&["Makefile", "a"], "Makefile: Invalid argument"), (&["nowhere", "a"], "nowhere: No such file")] {
        let bad = run(arguments);
        assert!(!bad.status.success() && String::from_utf8_lossy(&bad.stderr).contains(text), "{bad:?}");
    }
}
