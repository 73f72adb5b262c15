//! Compiles the model with `tfc` for the target of this package and links it.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let model = Path::new(&folder).join("../../fixtures/vit_fmnist.onnx");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("vit");
    let tfc = env::var("TFC").unwrap_or_else(|_| "tfc".into());
    let target = env::var("TARGET").expect("cargo sets it");
    let status = Command::new(&tfc)
        .arg("compile")
        .arg(&model)
        .args(["--name", "vit", "--weights", "embedded", "--target", &target, "-o"])
        .arg(&out)
        .status()
        .unwrap_or_else(|e| panic!("cannot run `{tfc}`: {e}; put it in the search path or its path in TFC"));
    assert!(status.success(), "`{tfc} compile` failed");
    println!("cargo::rerun-if-changed={}", model.display());
    println!("cargo::rerun-if-env-changed=TFC");
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static=vit");
}
