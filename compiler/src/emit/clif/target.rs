//! The CPUs that code is made for.

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use target_lexicon::{Architecture, Triple};

/// A CPU variant of a target: an instruction set with the extensions that may be used.
#[derive(Clone)]
pub struct Cpu {
    /// Name of the variant: `baseline`, `avx2`.
    pub name: &'static str,
    /// Cranelift's description of it.
    pub isa: OwnedTargetIsa,
    /// The extensions that it needs, by Cranelift's names of their flags.
    extensions: &'static [&'static str],
}

/// Extensions of the `avx2` variant: what every x86-64 CPU with AVX2 and FMA has.
const AVX2: [&str; 11] = [
    "has_sse3",
    "has_ssse3",
    "has_sse41",
    "has_sse42",
    "has_popcnt",
    "has_avx",
    "has_avx2",
    "has_bmi1",
    "has_bmi2",
    "has_lzcnt",
    "has_fma",
];

impl Cpu {
    /// Any CPU of the architecture of `triple`: on x86-64 SSE2, on aarch64 NEON. `None` for an
    /// architecture that this build has no code generator for.
    pub fn baseline(triple: &Triple) -> Option<Cpu> {
        Cpu::build("baseline", triple, &[])
    }

    /// An x86-64 CPU with AVX2 and FMA. `None` for other architectures.
    pub fn avx2(triple: &Triple) -> Option<Cpu> {
        if triple.architecture == Architecture::X86_64 { Cpu::build("avx2", triple, &AVX2) } else { None }
    }

    /// All variants for `triple`, the least demanding first.
    pub fn variants(triple: &Triple) -> Vec<Cpu> {
        Cpu::baseline(triple).into_iter().chain(Cpu::avx2(triple)).collect()
    }

    fn build(name: &'static str, triple: &Triple, extensions: &'static [&'static str]) -> Option<Cpu> {
        let mut shared = settings::builder();
        let verify = if cfg!(debug_assertions) { "true" } else { "false" };
        for (setting, value) in [
            ("opt_level", "speed"),
            ("is_pic", "true"),
            ("enable_verifier", verify),
            ("enable_probestack", "false"),
            ("unwind_info", "false"),
            ("preserve_frame_pointers", "false"),
        ] {
            shared.set(setting, value).expect("a setting of this version of Cranelift");
        }
        let mut isa = isa::lookup(triple.clone()).ok()?;
        for e in extensions {
            isa.enable(e).expect("an extension of this version of Cranelift");
        }
        let isa = isa.finish(settings::Flags::new(shared)).ok()?;
        Some(Cpu { name, isa, extensions })
    }

    /// The extensions that it needs beyond the target's baseline, in name order: `avx2`, `fma`, ….
    pub fn features(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.extensions.iter().map(|e| e.trim_start_matches("has_")).collect();
        names.sort_unstable();
        names
    }

    fn is_x86(&self) -> bool {
        self.isa.triple().architecture == Architecture::X86_64
    }

    fn flag(&self, name: &str) -> bool {
        self.isa.isa_flags().iter().any(|v| v.name == name && v.as_bool() == Some(true))
    }

    /// Whether a fused multiply-add is one instruction.
    pub fn has_fma(&self) -> bool {
        !self.is_x86() || (self.flag("has_fma") && self.flag("has_avx"))
    }

    /// Whether rounding a float to an integral float is one instruction.
    pub fn has_round(&self) -> bool {
        !self.is_x86() || self.flag("has_sse41")
    }

    /// Number of vector registers.
    pub fn vector_registers(&self) -> usize {
        if self.is_x86() { 16 } else { 32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_have_their_extensions() {
        let x86: Triple = "x86_64-unknown-linux-gnu".parse().unwrap();
        let v = Cpu::variants(&x86);
        assert_eq!(
            v.iter().map(|c| (c.name, c.has_fma(), c.has_round())).collect::<Vec<_>>(),
            [("baseline", false, false), ("avx2", true, true)]
        );
        assert!(v[0].features().is_empty());
        assert_eq!(v[1].features()[..3], ["avx", "avx2", "bmi1"]);
        let arm: Triple = "aarch64-unknown-linux-gnu".parse().unwrap();
        let v = Cpu::variants(&arm);
        assert_eq!(v.iter().map(|c| (c.name, c.has_fma())).collect::<Vec<_>>(), [("baseline", true)]);
    }
}
