//! Runs every `.tir` file under `tests/filetests` and compares with its snapshot.

use insta::{Settings, assert_snapshot, glob};
use std::panic::{AssertUnwindSafe, catch_unwind};

const HINT: &str = "Outputs differ from their snapshots as shown above. If the outputs are right, accept them:
    INSTA_UPDATE=always cargo test -p tfc-tests --test filetests";

#[test]
fn filetests() {
    let mut settings = Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("../snapshots");
    let mut faults = String::new();
    let mut all = || {
        glob!("../filetests", "**/*.tir", |path| {
            let source = std::fs::read_to_string(path).expect("the file was just found");
            match tfc_tests::filetest::test(&source) {
                Ok(snapshot) => assert_snapshot!("filetest", snapshot),
                Err(e) => faults += &format!("{}:\n{e}\n", path.display()),
            }
        });
    };
    if catch_unwind(AssertUnwindSafe(|| settings.bind(&mut all))).is_err() {
        faults += HINT;
    }
    assert!(faults.is_empty(), "\n{faults}");
}
