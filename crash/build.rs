//! Builds the recorder, a small library in C that is preloaded into what it watches.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=recorder/recorder.c");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("recorder.so");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-pthread", "-fvisibility=hidden", "recorder/recorder.c", "-o"])
        .arg(&out)
        .status();
    match status {
        Ok(status) if status.success() => println!("cargo::rustc-env=REPLIKV_RECORDER={}", out.display()),
        other => println!("cargo::error={compiler} does not build the recorder: {other:?}"),
    }
}
