//! Runs every `.tir` file under `tests/filetests` and compares with its snapshot.

use insta::{Settings, assert_snapshot, glob};

#[test]
fn filetests() {
    let mut settings = Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("../snapshots");
    let mut faults = String::new();
    settings.bind(|| {
        glob!("../filetests", "**/*.tir", |path| {
            let source = std::fs::read_to_string(path).expect("the file was just found");
            match tfc_tests::filetest::test(&source) {
                Ok(snapshot) => assert_snapshot!(
                    "filetest",
                    snapshot,
                    "if the output is right, accept it: INSTA_UPDATE=always cargo test -p tfc-tests --test filetests"
                ),
                Err(e) => faults += &format!("{}:\n{e}\n\n", path.display()),
            }
        });
    });
    assert!(faults.is_empty(), "\n{faults}");
}
