//! The CPUs that code is made for.

use crate::emit::cpuid;
use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use target_lexicon::{Architecture, OperatingSystem, Triple};

/// The widest instruction set of a variant: what the emitter of wide kernels may use beyond Cranelift's
/// 128 bits. Each includes the ones before it, but [`Wide::Avx512Vnni`] and [`Wide::Amx`] not [`Wide::AvxVnni`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wide {
    /// AVX2, FMA and F16C: 16 registers of 256 bits.
    Avx2,
    /// The same with the VEX-coded dot products of AVX-VNNI.
    AvxVnni,
    /// AVX-512 F, BW, CD, DQ, VL and VNNI: 32 registers of 512 bits, masks.
    Avx512Vnni,
    /// The same with AMX-TILE and AMX-INT8: eight registers of 16 rows of 64 bytes, and products of such tiles of bytes.
    Amx,
}

/// A CPU variant of a target: an instruction set with the extensions that may be used.
#[derive(Clone)]
pub struct Cpu {
    /// Name of the variant: `baseline`, `avx2`, `avxvnni`, `avx512vnni`, `amx`.
    pub name: &'static str,
    /// Cranelift's description of it.
    pub isa: OwnedTargetIsa,
    /// What wide kernels may use; `None` where all kernels are Cranelift's.
    pub wide: Option<Wide>,
    /// The extensions that Cranelift may use, by its names of their flags.
    extensions: &'static [&'static str],
}

/// Extensions that Cranelift may use on an x86-64 CPU with AVX2 and FMA.
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

/// Extensions of [`Wide::Avx512Vnni`] beyond [`Wide::Avx2`].
const AVX512: [&str; 6] = ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"];

/// What `--mcpu` accepts for x86-64 besides the names of variants: instruction set levels and families
/// of CPUs, each with the best variant that all of its members run, or the best before it that the target has.
/// Level 4 has no VNNI.
const MCPU: [(&str, &str); 24] = [
    ("x86-64", "baseline"),
    ("x86-64-v2", "baseline"),
    ("x86-64-v3", "avx2"),
    ("x86-64-v4", "avx2"),
    ("haswell", "avx2"),
    ("broadwell", "avx2"),
    ("skylake", "avx2"),
    ("skylake-avx512", "avx2"),
    ("cascadelake", "avx512vnni"),
    ("icelake-client", "avx512vnni"),
    ("icelake-server", "avx512vnni"),
    ("tigerlake", "avx512vnni"),
    ("rocketlake", "avx512vnni"),
    ("sapphirerapids", "amx"),
    ("emeraldrapids", "amx"),
    ("graniterapids", "amx"),
    ("alderlake", "avxvnni"),
    ("raptorlake", "avxvnni"),
    ("sierraforest", "avxvnni"),
    ("znver1", "avx2"),
    ("znver2", "avx2"),
    ("znver3", "avx2"),
    ("znver4", "avx512vnni"),
    ("znver5", "avx512vnni"),
];

impl Cpu {
    /// Any CPU of the architecture of `triple`: on x86-64 SSE2, on aarch64 NEON. `None` for an
    /// architecture that this build has no code generator for.
    pub fn baseline(triple: &Triple) -> Option<Cpu> {
        Cpu::build("baseline", triple, &[], None)
    }

    /// An x86-64 CPU with AVX2 and FMA. `None` for other architectures.
    pub fn avx2(triple: &Triple) -> Option<Cpu> {
        Cpu::wide("avx2", triple, Wide::Avx2)
    }

    /// All variants for `triple`, the least demanding first. Where several can run, the last is the best.
    pub fn variants(triple: &Triple) -> Vec<Cpu> {
        let wide = [("avx2", Wide::Avx2), ("avxvnni", Wide::AvxVnni), ("avx512vnni", Wide::Avx512Vnni)];
        // Matrix tiles have to be asked for, and only Linux is asked: see `cpuid`.
        let tiles = (triple.operating_system == OperatingSystem::Linux).then_some(("amx", Wide::Amx));
        let wide = wide.into_iter().chain(tiles);
        Cpu::baseline(triple).into_iter().chain(wide.filter_map(|(name, w)| Cpu::wide(name, triple, w))).collect()
    }

    /// The variant for a CPU, a level of the architecture, or a variant by its own name.
    pub fn named(triple: &Triple, name: &str) -> Option<Cpu> {
        let x86 = triple.architecture == Architecture::X86_64;
        let family = MCPU.iter().find(|(cpu, _)| x86 && *cpu == name).map(|(_, variant)| *variant);
        let variants = Cpu::variants(triple);
        let known = |name: &str| variants.iter().position(|c| c.name == name);
        // What runs tiles runs AVX-512 with VNNI.
        let at = known(family.unwrap_or(name)).or_else(|| family.filter(|&f| f == "amx").and_then(|_| known("avx512vnni")))?;
        variants.into_iter().nth(at)
    }

    /// The names that [`Cpu::named`] knows.
    pub fn names(triple: &Triple) -> Vec<&'static str> {
        let levels = MCPU.iter().filter(|_| triple.architecture == Architecture::X86_64).map(|(cpu, _)| *cpu);
        Cpu::variants(triple).iter().map(|c| c.name).chain(levels).collect()
    }

    /// The best variant that this machine runs, if its architecture has a code generator.
    pub fn best_here() -> Option<Cpu> {
        Cpu::variants(&Triple::host()).into_iter().rfind(Cpu::runs_here)
    }

    /// Whether this machine runs code of the variant: its CPU has the instructions, and its operating
    /// system keeps their registers.
    pub fn runs_here(&self) -> bool {
        self.isa.triple().architecture == Triple::host().architecture && cpuid::required(self) & !cpuid::of_this_machine() == 0
    }

    /// Whether Cranelift makes the same code for both.
    pub fn same_cranelift(&self, other: &Cpu) -> bool {
        self.isa.triple() == other.isa.triple() && self.extensions == other.extensions
    }

    fn wide(name: &'static str, triple: &Triple, wide: Wide) -> Option<Cpu> {
        if triple.architecture == Architecture::X86_64 { Cpu::build(name, triple, &AVX2, Some(wide)) } else { None }
    }

    fn build(name: &'static str, triple: &Triple, extensions: &'static [&'static str], wide: Option<Wide>) -> Option<Cpu> {
        let mut shared = settings::builder();
        let verify = if cfg!(debug_assertions) { "true" } else { "false" };
        for (setting, value) in [
            ("opt_level", "speed"),
            ("is_pic", "true"),
            ("enable_verifier", verify),
            ("enable_probestack", "true"),
            ("probestack_strategy", "inline"),
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
        Some(Cpu { name, isa, wide, extensions })
    }

    /// The extensions that it needs beyond the target's baseline, in name order: `avx2`, `fma`, …. These are
    /// what `NAME_init` asks the CPU for.
    pub fn features(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.extensions.iter().map(|e| e.trim_start_matches("has_")).collect();
        names.extend(self.wide.iter().flat_map(|_| ["f16c", "movbe"]));
        names.extend(match self.wide {
            None | Some(Wide::Avx2) => &[][..],
            Some(Wide::AvxVnni) => &["avxvnni"],
            Some(Wide::Avx512Vnni | Wide::Amx) => &AVX512,
        });
        if self.matrix_tiles() {
            names.extend(["amx-int8", "amx-tile"]);
        }
        names.sort_unstable();
        names
    }

    /// Whether it has matrix tiles, and so operands of products in rows.
    pub fn matrix_tiles(&self) -> bool {
        self.wide.is_some_and(Wide::matrix_tiles)
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

    /// Number of 128-bit vector registers.
    pub fn vector_registers(&self) -> usize {
        if self.is_x86() { 16 } else { 32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x86() -> Triple {
        "x86_64-unknown-linux-gnu".parse().unwrap()
    }

    fn arm() -> Triple {
        "aarch64-unknown-linux-gnu".parse().unwrap()
    }

    #[test]
    fn variants_have_their_extensions() {
        let v = Cpu::variants(&x86());
        assert_eq!(
            v.iter().map(|c| (c.name, c.wide, c.has_fma(), c.has_round())).collect::<Vec<_>>(),
            [
                ("baseline", None, false, false),
                ("avx2", Some(Wide::Avx2), true, true),
                ("avxvnni", Some(Wide::AvxVnni), true, true),
                ("avx512vnni", Some(Wide::Avx512Vnni), true, true),
                ("amx", Some(Wide::Amx), true, true)
            ]
        );
        assert!(v[0].features().is_empty());
        assert_eq!(v[1].features()[..4], ["avx", "avx2", "bmi1", "bmi2"]);
        let more = |i: usize| v[i].features().into_iter().filter(|f| !v[1].features().contains(f)).collect::<Vec<_>>();
        assert_eq!(more(2), ["avxvnni"]);
        assert_eq!(more(3), ["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "avx512vnni"]);
        assert_eq!(more(4), ["amx-int8", "amx-tile", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "avx512vnni"]);
        assert!(v[1].same_cranelift(&v[3]) && !v[0].same_cranelift(&v[1]));
        let v = Cpu::variants(&arm());
        assert_eq!(v.iter().map(|c| (c.name, c.wide, c.has_fma())).collect::<Vec<_>>(), [("baseline", None, true)]);
    }

    #[test]
    fn cpus_have_variants() {
        let named = |triple: &Triple, name: &str| Cpu::named(triple, name).map(|c| c.name);
        for name in Cpu::names(&x86()) {
            assert!(named(&x86(), name).is_some(), "{name}");
        }
        assert_eq!(named(&x86(), "x86-64-v4"), Some("avx2"));
        assert_eq!(named(&x86(), "znver4"), Some("avx512vnni"));
        assert_eq!(named(&x86(), "sapphirerapids"), Some("amx"));
        let windows: Triple = "x86_64-pc-windows-msvc".parse().unwrap();
        assert_eq!((named(&windows, "sapphirerapids"), named(&windows, "amx")), (Some("avx512vnni"), None));
        assert_eq!(named(&x86(), "i486"), None);
        assert_eq!((named(&arm(), "baseline"), named(&arm(), "znver4"), named(&arm(), "avx2")), (Some("baseline"), None, None));
        assert_eq!(Cpu::names(&arm()), ["baseline"]);
    }
}
