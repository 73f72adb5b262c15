//! Options that several sub-commands have.

use super::console::{Console, bytes};
use clap::ValueEnum;
use regex::Regex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tfc::calibration::Holdout;
use tfc::diag::{Diagnostic, Result};
use tfc::driver;
use tfc::metrics::{Bound, Metric, Promise};
use tfc::onnx::{DimSpec, ImportOptions};
use tfc_ir::dim::Range;
use tfc_passes::quantize::SpecError;
use tfc_passes::{LedgerEntry, OptLevel, Pass, QuantConfig, QuantSpec};

/// When messages have colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How much the compiler does.
#[derive(clap::Args, Clone)]
pub struct Level {
    /// Optimization level: 0 compiles node by node, 1 keeps every bit of the results, 2 also
    /// rewrites what changes the rounding and computes products of f64 in f32, 3 does everything.
    #[arg(short = 'O', value_name = "LEVEL", default_value = "3", value_parser = parse_level, help_heading = "Optimization")]
    pub level: OptLevel,
    /// Run exactly these passes, in this order, instead of those of the level.
    #[arg(long, value_name = "A,B,C", value_parser = parse_passes, help_heading = "Optimization")]
    pub passes: Option<PassList>,
    #[command(flatten)]
    pub quantization: Quantization,
    /// Verify the graph after each pass, to find the pass that breaks it.
    #[arg(long, help_heading = "Debugging")]
    pub verify_each: bool,
}

/// How a model is quantized.
#[derive(clap::Args, Clone, Default)]
pub struct Quantization {
    /// How weights and activations are quantized: f32 (not at all), w8a8, w4a8 (activations in 8 bits),
    /// w4a16 (weights only); with :g32, :g64, :g128 for a scale per so many weights,
    /// or :channel for one per output channel, the default. Activations get a scale per row at run time (:dynamic), or
    /// one for all rows that calibration data shows (:static, needs --calib); with such data the default is what costs no
    /// accuracy, operand by operand. With activations in 8 bits, both products
    /// of attention are in 8 bits too. Weights that the model stores as integers stay as they are.
    #[arg(long, value_name = "SPEC", help_heading = "Quantization")]
    quant: Option<String>,
    /// Another scheme for the products and attentions of the ONNX nodes whose names the expression finds,
    /// such as `layer\.0/=f32`. Repeatable; the last one that matches holds.
    #[arg(long = "quant-override", value_name = "REGEX=SPEC", help_heading = "Quantization")]
    overrides: Vec<String>,
    /// Samples that show what values are like: an archive with members that are named like the inputs. Samples are along the
    /// first axis of an input if it is free or 1 in the model, else along one more in front. Repeatable; files may differ in free sizes.
    #[arg(long = "calib", value_name = "DATA.npz", help_heading = "Quantization")]
    calib: Vec<PathBuf>,
    /// A file that keeps what calibration observes. If it is there, nothing is observed again, here or on another machine; it must be of
    /// the same model, options and data. Without --calib the data does not matter, but nothing is measured. If it is not there, it is
    /// written.
    #[arg(long, value_name = "FILE", help_heading = "Quantization")]
    calib_cache: Option<PathBuf>,
    /// An input whose zeros are positions that do not count, such as attention_mask.
    #[arg(long, value_name = "INPUT", help_heading = "Quantization")]
    pub calib_mask: Option<String>,
    /// How many samples are kept apart to measure the error of the result [default: an eighth, at least 8].
    #[arg(long, value_name = "N", requires = "calib", help_heading = "Quantization")]
    holdout: Option<usize>,
}

impl Quantization {
    /// Whether the options ask for anything.
    pub fn is_given(&self) -> bool {
        self.quant.is_some() || !self.overrides.is_empty()
    }

    /// What the options say; `None` if nothing is quantized.
    ///
    /// # Errors
    /// When there is no such scheme, or it is not supported yet; when an expression is wrong.
    fn config(&self) -> Result<Option<QuantConfig>> {
        let spec = self.quant.as_deref().unwrap_or("f32");
        let mut config = QuantConfig::new(parse_quant(&format!("--quant {spec}"), spec)?);
        for text in &self.overrides {
            let option = format!("--quant-override {text}");
            let (regex, spec) = text.rsplit_once('=').ok_or_else(|| {
                Diagnostic::usage(format!("{option}: expected REGEX=SPEC")).help("such as --quant-override 'layer\\.0/=f32'")
            })?;
            let regex = Regex::new(regex)
                .map_err(|e| Diagnostic::usage(format!("{option}: `{regex}` is not a regular expression")).note(e.to_string()))?;
            config.overrides.push((regex, parse_quant(&option, spec)?));
        }
        Ok((!config.is_f32()).then_some(config))
    }

    /// The data to calibrate on, if there is any.
    ///
    /// # Errors
    /// When nothing is quantized.
    fn calibration(&self, console: &Console) -> Result<Option<driver::CalibrationOptions>> {
        let config = self.config()?;
        if self.calib.is_empty() && self.calib_cache.is_none() {
            return match config.filter(QuantConfig::wants_data) {
                Some(_) => Err(Diagnostic::usage("static activations need data that shows their ranges")
                    .help("give samples with --calib DATA.npz, or say :dynamic")),
                None => Ok(None),
            };
        }
        if config.is_none() {
            let option = if self.calib.is_empty() { "--calib-cache" } else { "--calib" };
            return Err(
                Diagnostic::usage(format!("{option} is for models that are quantized")).help("say how with --quant, such as --quant w4a8")
            );
        }
        Ok(Some(driver::CalibrationOptions {
            paths: self.calib.clone(),
            cache: self.calib_cache.clone(),
            mask: self.calib_mask.clone(),
            holdout: self.holdout.map_or(Holdout::Default, Holdout::Count),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            progress: console.samples(),
            promise: Promise::default(),
            shares: false,
        }))
    }

    /// For commands that use the mask for calibration only.
    ///
    /// # Errors
    /// When there is a mask and nothing to calibrate on.
    pub fn mask_has_samples(&self) -> Result<()> {
        match &self.calib_mask {
            Some(mask) if self.calib.is_empty() && self.calib_cache.is_none() => {
                Err(Diagnostic::usage(format!("--calib-mask {mask} hides positions of samples, and there are none"))
                    .help("give samples with --calib DATA.npz"))
            }
            _ => Ok(()),
        }
    }

    /// The options that say what is calibrated on.
    pub fn data(&self) -> Vec<String> {
        let mut options: Vec<String> = self.calib.iter().map(|path| format!("--calib={}", path.display())).collect();
        options.extend(self.calib_cache.iter().map(|path| format!("--calib-cache={}", path.display())));
        options.extend(self.calib_mask.iter().map(|input| format!("--calib-mask={input}")));
        options.extend(self.holdout.iter().map(|n| format!("--holdout={n}")));
        options
    }

    /// Says which overrides match no product of a model, and what stays float.
    pub fn note(&self, ledger: &[LedgerEntry], stopped: bool, console: &Console) {
        let Ok(Some(config)) = self.config() else { return };
        console.notes(&stays_float(ledger));
        if ledger.is_empty() && stopped {
            return;
        }
        for ((regex, _), text) in config.overrides.iter().zip(&self.overrides) {
            if !ledger.iter().any(|e| e.loc.names().any(|n| regex.is_match(n))) {
                console.info(&format!("note: --quant-override {text} matches no matrix product"));
            }
        }
    }
}

/// The most reasons that are told without a report.
const MAX_REASONS: usize = 8;

/// What stays float, a line for each reason.
fn stays_float(ledger: &[LedgerEntry]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&LedgerEntry>)> = vec![];
    for e in ledger.iter().filter(|e| e.spec == QuantSpec::F32) {
        match reasons.iter_mut().find(|(reason, _)| *reason == e.reason) {
            Some((_, entries)) => entries.push(e),
            None => reasons.push((&e.reason, vec![e])),
        }
    }
    let line = |(reason, entries): &(&str, Vec<&LedgerEntry>)| {
        let weights = match entries.iter().map(|e| e.source_bytes).sum() {
            0 => String::new(),
            n => format!(" ({})", bytes(n)),
        };
        let name = entries[0].loc.names().next().unwrap_or("a node without a name");
        match entries.len() {
            1 => format!("`{name}` stays float{weights}: {reason}"),
            n => format!("`{name}` and {} more stay float{weights}: {reason}", n - 1),
        }
    };
    let mut lines: Vec<String> = reasons.iter().take(MAX_REASONS).map(line).collect();
    if reasons.len() > MAX_REASONS {
        let rest: usize = reasons[MAX_REASONS..].iter().map(|(_, entries)| entries.len()).sum();
        lines.push(format!("{rest} more stay float, for other reasons: `tfc compile --opt-report` has them"));
    }
    lines
}

fn parse_quant(option: &str, spec: &str) -> Result<QuantSpec> {
    spec.parse().map_err(|e: SpecError| {
        let message = format!("{option}: {e}");
        match e {
            SpecError::Later(_) => Diagnostic::unsupported(message).help("use f32, w8a8, w4a8 or w4a16"),
            _ => Diagnostic::usage(message),
        }
    })
}

impl Level {
    /// What shapes the code, in a fixed form and order; data shapes it too ([`Quantization::data`]).
    pub fn canonical(&self) -> Vec<String> {
        let mut options = vec![format!("-O{}", self.level as u8)];
        options.extend(self.passes.iter().map(|p| format!("--passes={}", p.0.iter().map(|p| p.name).collect::<Vec<_>>().join(","))));
        options.push(format!("--quant={}", self.quantization.quant.as_deref().unwrap_or("f32")));
        options.extend(self.quantization.overrides.iter().map(|o| format!("--quant-override={o}")));
        options
    }

    /// The level that an artifact was compiled with, from the options in its manifest.
    ///
    /// # Errors
    /// When they are not what this compiler writes.
    pub fn recorded(options: &[String]) -> Result<Level> {
        #[derive(clap::Parser)]
        struct Recorded {
            #[command(flatten)]
            level: Level,
        }
        let ours = options.iter().filter(|o| ["-O", "--passes=", "--quant=", "--quant-override="].iter().any(|p| o.starts_with(p)));
        let words = ["tfc".to_string()].into_iter().chain(ours.cloned());
        let parsed = <Recorded as clap::Parser>::try_parse_from(words);
        Ok(parsed.map_err(|e| Diagnostic::failed(format!("the options in the manifest are not known: {e}")))?.level)
    }
}

/// How near the outputs of floats must be to those of the model in f32.
#[derive(clap::Args, Clone, Default)]
pub struct Accuracy {
    /// The largest relative RMS error of every output of floats, such as 0.02, or of one: `logits=0.02`. Repeatable.
    #[arg(long, value_name = "X|NAME=X", value_parser = parse_bound, help_heading = "Accuracy")]
    max_error: Vec<(Option<String>, f64)>,
    /// The largest mean divergence, in nats, of softmax over the last axis: of every output of floats whose last axis has two
    /// entries or more, or of one: `logits=0.01`. Repeatable.
    #[arg(long, value_name = "X|NAME=X", value_parser = parse_bound, help_heading = "Accuracy")]
    max_kl: Vec<(Option<String>, f64)>,
    /// In how many percent of the rows along the last axis the largest entry is where it is in f32, at least: of every output of
    /// floats whose last axis has two entries or more, or of one: `logits=99.5`. Repeatable.
    #[arg(long, value_name = "P|NAME=P", value_parser = parse_percent, help_heading = "Accuracy")]
    require_top1: Vec<(Option<String>, f64)>,
}

impl Accuracy {
    /// What is promised.
    pub fn promise(&self) -> Promise {
        let given = [(Metric::Error, &self.max_error), (Metric::Divergence, &self.max_kl), (Metric::Top1, &self.require_top1)];
        let bounds = |(metric, list): (Metric, &Vec<(Option<String>, f64)>)| {
            list.iter().map(move |(output, limit)| Bound { metric, output: output.clone(), limit: *limit }).collect::<Vec<_>>()
        };
        Promise(given.into_iter().flat_map(bounds).collect())
    }
}

fn parse_bound(text: &str) -> Result<(Option<String>, f64), String> {
    let (name, number) = text.rsplit_once('=').map_or((None, text), |(name, number)| (Some(name.to_string()), number));
    let limit = number.parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0);
    Ok((name, limit.ok_or(format!("`{number}` is not a number of 0 or more; expected one, or NAME and one, such as logits=0.01"))?))
}

fn parse_percent(text: &str) -> Result<(Option<String>, f64), String> {
    let (name, percent) = parse_bound(text)?;
    if percent > 100.0 { Err(format!("{percent} is more than 100 percent")) } else { Ok((name, percent)) }
}

/// Passes by name.
#[derive(Clone)]
pub struct PassList(pub Vec<&'static Pass>);

/// Shapes and dimensions.
#[derive(clap::Args, Clone, Default)]
pub struct Shapes {
    /// Fix the shape of an input, such as `input_ids=1x128`. Repeatable, or a list with commas.
    #[arg(long = "shape", value_name = "INPUT=AxB", value_delimiter = ',', value_parser = parse_shape, help_heading = "Shapes")]
    pub shapes: Vec<(String, Vec<i64>)>,
    /// Bound a free dimension (`seq=1..512`, `past=0..`, `seq=..512`) or fix it (`seq=128`). Repeatable, or a list with
    /// commas. Without bounds it is 0 or more, as far as all operators take that.
    #[arg(long = "dim", value_name = "NAME=A..B", value_delimiter = ',', value_parser = parse_dim, help_heading = "Shapes")]
    pub dims: Vec<(String, DimSpec)>,
}

/// Sizes without ranges.
#[derive(Clone, Default)]
pub struct Fixed {
    /// Shapes of inputs, by name.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Sizes of dimensions, by name.
    pub dims: BTreeMap<String, i64>,
}

/// Where the code runs.
#[derive(clap::Args, Clone)]
pub struct Threads {
    /// Threads; 0 for as many as there are CPUs.
    #[arg(long = "threads", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    count: u16,
}

impl Threads {
    /// The number of threads.
    pub fn count(&self) -> usize {
        match self.count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n.into(),
        }
    }
}

impl Fixed {
    /// Sizes of symbols.
    pub fn symbols(&self) -> Vec<(&str, i64)> {
        self.dims.iter().map(|(n, v)| (n.as_str(), *v)).collect()
    }
}

impl Shapes {
    /// The options in a fixed form and order.
    pub fn canonical(&self) -> Vec<String> {
        let shape =
            |(n, s): &(String, Vec<i64>)| format!("--shape={n}={}", s.iter().map(ToString::to_string).collect::<Vec<_>>().join("x"));
        let mut options: Vec<String> = self.shapes.iter().map(shape).collect();
        options.extend(self.dims.iter().map(|(n, d)| match d {
            DimSpec::Fixed(k) => format!("--dim={n}={k}"),
            DimSpec::Range(r) => format!("--dim={n}={}..{}", r.min, r.max),
        }));
        options.sort();
        options.dedup();
        options
    }

    /// The options of the importer.
    ///
    /// # Errors
    /// When a name is given twice with different sizes.
    pub fn import(&self) -> Result<ImportOptions> {
        Ok(ImportOptions { shapes: unique("--shape", &self.shapes)?, dims: unique("--dim", &self.dims)? })
    }

    /// Shapes and fixed dimensions for a model that is compiled already.
    ///
    /// # Errors
    /// As [`Shapes::import`], and when a dimension is bounded instead of fixed.
    pub fn fixed(&self) -> Result<Fixed> {
        let import = self.import()?;
        let fixed = |(name, spec): (String, DimSpec)| match spec {
            DimSpec::Fixed(n) => Ok((name, n)),
            DimSpec::Range(_) => Err(Diagnostic::usage(format!("--dim {name}: the model is compiled already, so this must be a number"))),
        };
        Ok(Fixed { shapes: import.shapes, dims: import.dims.into_iter().map(fixed).collect::<Result<_>>()? })
    }
}

fn unique<T: Clone + PartialEq + std::fmt::Debug>(option: &str, given: &[(String, T)]) -> Result<BTreeMap<String, T>> {
    let mut map = BTreeMap::new();
    for (name, value) in given {
        if map.insert(name.clone(), value.clone()).is_some_and(|old| old != *value) {
            return Err(Diagnostic::usage(format!("{option} is given twice for `{name}`, with different values")));
        }
    }
    Ok(map)
}

/// The options of the driver.
///
/// # Errors
/// As [`Shapes::import`], and when the options for quantization are wrong.
pub fn driver_options(level: &Level, shapes: &Shapes, console: &Console) -> Result<driver::Options> {
    let quant = level.quantization.config()?;
    if quant.is_some() && level.passes.as_ref().is_some_and(|p| p.0.iter().all(|p| p.name != "quantize")) {
        return Err(Diagnostic::usage("the options ask for quantization, but --passes has no pass `quantize`")
            .help("add it before `fuse`, or leave --passes out"));
    }
    Ok(driver::Options {
        import: shapes.import()?,
        level: level.level,
        passes: level.passes.as_ref().map(|p| p.0.clone()),
        quant,
        calibration: level.quantization.calibration(console)?,
        verify_each: level.verify_each,
    })
}

fn parse_level(text: &str) -> Result<OptLevel, String> {
    match text {
        "0" => Ok(OptLevel::O0),
        "1" => Ok(OptLevel::O1),
        "2" => Ok(OptLevel::O2),
        "3" => Ok(OptLevel::O3),
        _ => Err("the levels are 0, 1, 2 and 3".into()),
    }
}

fn parse_passes(text: &str) -> Result<PassList, String> {
    tfc_passes::parse_passes(text).map(PassList).map_err(|e| e.to_string())
}

fn parse_shape(text: &str) -> Result<(String, Vec<i64>), String> {
    let (name, sizes) = text.rsplit_once('=').ok_or("expected INPUT=AxB, such as input_ids=1x128")?;
    let size = |s: &str| {
        s.parse::<i64>().ok().filter(|&n| n >= 0).ok_or(format!("`{s}` is not a size; expected numbers with x between them, such as 1x128"))
    };
    let sizes = if sizes.is_empty() { vec![] } else { sizes.split('x').map(size).collect::<Result<_, _>>()? };
    Ok((name.into(), sizes))
}

fn parse_dim(text: &str) -> Result<(String, DimSpec), String> {
    let (name, size) = text.rsplit_once('=').ok_or("expected NAME=SIZE or NAME=MIN..MAX")?;
    let number = |s: &str| s.parse::<i64>().ok().filter(|&n| n >= 0).ok_or(format!("`{s}` is not a size"));
    let spec = match size.split_once("..") {
        None => DimSpec::Fixed(number(size)?),
        Some((min, max)) => {
            let max = max.strip_prefix('=').unwrap_or(max);
            let bound = |s: &str, open: i64| if s.is_empty() { Ok(open) } else { number(s) };
            let range = Range { min: bound(min, Range::ANY.min)?, max: bound(max, Range::ANY.max)? };
            if range.min > range.max {
                return Err(format!("the range {min}..{max} is empty"));
            }
            DimSpec::Range(range)
        }
    };
    Ok((name.into(), spec))
}

/// A place in the pipeline: a pass by name (each time it runs), or by the name that its dump has
/// (`07-eqsat`). `import` is the place before all passes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Point {
    name: String,
    number: Option<usize>,
}

impl Point {
    /// Whether this is the pass called `name` that runs as number `number`; the import has number 0.
    pub fn is(&self, number: usize, name: &str) -> bool {
        self.name == name && self.number.is_none_or(|n| n == number)
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            Some(n) => write!(f, "{n:02}-{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Parses a [`Point`].
///
/// # Errors
/// When no pass has the name.
pub fn parse_point(text: &str) -> Result<Point, String> {
    let (number, name) = match text.split_once('-') {
        Some((n, name)) if n.bytes().all(|b| b.is_ascii_digit()) => (n.parse().ok(), name),
        _ => (None, text),
    };
    if name != "import" {
        tfc_passes::table::find(name).map_err(|e| e.to_string())?;
    }
    Ok(Point { name: name.into(), number })
}

/// How statistics are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum StatsFormat {
    /// A table on stderr.
    Text,
    /// One object on stdout.
    Json,
}

/// Looking into the compiler.
#[derive(clap::Args, Clone, Default)]
pub struct Debugging {
    /// Print the graph to stderr after this pass (or `import`), without large constants. Repeatable.
    #[arg(long, value_name = "PASS", value_parser = parse_point, help_heading = "Debugging")]
    pub print_ir_after: Vec<Point>,
    /// Print the graph to stderr after the import and after every pass.
    #[arg(long, help_heading = "Debugging")]
    pub print_ir_after_all: bool,
    /// Write the graph after the import and after every pass to DIR, as `07-eqsat.tir`, and the constants of more than 8
    /// elements of all of them to `constants.bin`, each once. `tfc compile` accepts these files, and printed graphs beside them.
    #[arg(long, value_name = "DIR", help_heading = "Debugging")]
    pub dump_ir: Option<PathBuf>,
    /// End after this pass (or `import`, or `07-eqsat`) and write the graph instead of code.
    #[arg(long, value_name = "PASS", value_parser = parse_point, help_heading = "Debugging")]
    pub stop_after: Option<Point>,
    /// Print how long each pass and each step took.
    #[arg(long, help_heading = "Debugging")]
    pub time_passes: bool,
    /// Print what each pass did, and sizes.
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text", help_heading = "Debugging")]
    pub stats: Option<StatsFormat>,
    /// Print every kernel: its kind, the operators that were fused into it, and the ONNX nodes; and what
    /// quantization did to every matrix product.
    #[arg(long, help_heading = "Debugging")]
    pub opt_report: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_dimensions_are_read() {
        assert_eq!(parse_shape("a/b:0=1x128").unwrap(), ("a/b:0".into(), vec![1, 128]));
        assert_eq!(parse_shape("x=").unwrap(), ("x".into(), vec![]));
        assert!(parse_shape("x=1,2").is_err() && parse_shape("x").is_err() && parse_shape("x=-1").is_err());
        assert_eq!(parse_dim("seq=128").unwrap().1, DimSpec::Fixed(128));
        assert_eq!(parse_dim("seq=1..512").unwrap().1, DimSpec::Range(Range { min: 1, max: 512 }));
        assert_eq!(parse_dim("past=0..").unwrap().1, DimSpec::Range(Range { min: 0, max: i32::MAX.into() }));
        assert_eq!(parse_dim("seq=..512").unwrap().1, DimSpec::Range(Range { min: 0, max: 512 }));
        assert!(parse_dim("seq=..x").is_err() && parse_dim("seq=-1..").is_err());
        assert!(parse_dim("seq=5..2").is_err() && parse_dim("seq=x").is_err());
    }

    #[test]
    fn limits_may_name_outputs() {
        assert_eq!(parse_bound("0.5"), Ok((None, 0.5)));
        assert_eq!(parse_bound("a=b=1e-3"), Ok((Some("a=b".into()), 1e-3)));
        assert_eq!(parse_percent("logits=99.5"), Ok((Some("logits".into()), 99.5)));
        assert!(["", "x", "nan", "inf", "-1", "a="].iter().all(|text| parse_bound(text).is_err()));
        assert!(parse_percent("101").is_err());
    }

    #[test]
    fn points_name_passes() {
        let p = parse_point("07-fold").unwrap();
        assert!(p.is(7, "fold") && !p.is(1, "fold") && !p.is(7, "cse"));
        assert!(parse_point("fold").unwrap().is(3, "fold") && parse_point("import").unwrap().is(0, "import"));
        assert!(parse_point("nothing").unwrap_err().contains("eqsat"));
    }
}
