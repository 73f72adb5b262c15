//! Filetests: `.tir` files under `tests/filetests/<subject>`, found by their place.
//!
//! Comments at the start of a file say what is done with it, one command a line:
//!
//! ```text
//! // test: run
//! // dim seq = 3
//! // input %x: f32[3] = [1.0, 2.0, 3.0]
//! tfc.ir 1
//! …
//! ```
//!
//! [`COMMANDS`] lists the commands; to add one, write its function and its line there. `dim` gives a
//! symbol its value, `input` an input its data; other symbols get a small value, other inputs
//! pseudo-random data.
//!
//! Before the commands, every file is read, printed and read again, which must give the same graph
//! and the same text, and verified. A file with comments `//~ ERROR: message` is about an error: the
//! parser or the verifier must report exactly these messages, in these lines.

use crate::choices::Choices;
use crate::native::{self, Tolerance, cpus, load, optimize, try_run};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use tfc::schedule::schedule;
use tfc_ir::dim::{Bindings, Range, Symbol};
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_ir::text::{self, Lines};
use tfc_ir::verify::{Part, VerifyError, verify};
use tfc_passes::OptLevel;
use tfc_runtime::abi::Status;

/// What can be done with a file.
pub struct Command {
    /// The word behind `// test:`.
    pub name: &'static str,
    /// One line about it.
    pub summary: &'static str,
    /// Takes the file and the words behind the name; gives a section of the snapshot.
    pub run: fn(&File, &str) -> Result<String, String>,
}

/// Every command.
pub const COMMANDS: &[Command] = &[
    Command { name: "parse", summary: "prints the graph in its canonical form", run: command_parse },
    Command { name: "verify", summary: "does no more than the checks that every file undergoes", run: |_, _| Ok("valid\n".into()) },
    Command {
        name: "native",
        summary: "compiles the graph, compares with the interpreter, and prints what is launched",
        run: command_native,
    },
    Command { name: "run", summary: "evaluates the graph and prints its outputs", run: command_run },
    Command {
        name: "quantize",
        summary: "quantizes by a scheme, runs passes, compares with the graph before, and prints what was done and the graph",
        run: command_quantize,
    },
    Command { name: "pass", summary: "runs passes, checks that outputs stay the same, and prints the graph", run: command_pass },
];

/// A file with what its comments say.
pub struct File {
    /// The graph.
    pub graph: Graph,
    dims: Bindings,
    inputs: BTreeMap<String, Tensor>,
}

impl File {
    /// Values for the symbols and the inputs.
    ///
    /// # Errors
    /// When the data of an input does not fit its type.
    pub fn data(&self) -> Result<(Bindings, Vec<Tensor>), String> {
        let graph = &self.graph;
        let mut bindings = self.dims.clone();
        let name = |v| graph.value(v).name.as_deref().unwrap_or_default();
        for &v in graph.inputs() {
            let Some(t) = self.inputs.get(name(v)) else { continue };
            for (d, &n) in graph.ty(v).shape.0.iter().zip(t.sizes()) {
                if let Some(s) = d.as_symbol() {
                    bindings.entry(s.clone()).or_insert(n as i64);
                }
            }
        }
        for (s, &Range { min, max }) in &graph.symbols {
            bindings.entry(s.clone()).or_insert(max.min(min.max(3)));
        }
        let tensor = |(i, &v)| {
            let ty = graph.ty(v);
            let sizes = ty.shape.eval(&bindings).ok_or_else(|| format!("{} has no sizes with {bindings:?}", name(v)))?;
            match self.inputs.get(name(v)) {
                Some(t) if (t.elem(), t.sizes()) == (ty.elem, &sizes[..]) => Ok(t.clone()),
                Some(t) => Err(format!("input {} is {ty}, which is {sizes:?} here, but the data is {}", name(v), t.ty())),
                None => Ok(Choices::seeded(i as u64).tensor(ty.elem, &sizes)),
            }
        };
        let inputs = graph.inputs().iter().enumerate().map(tensor).collect::<Result<_, String>>()?;
        Ok((bindings, inputs))
    }
}

/// Tests a file; the result is the snapshot.
///
/// # Errors
/// What is wrong, for people.
pub fn test(source: &str) -> Result<String, String> {
    let header = Header::read(source)?;
    let mut snapshot = format!("{}\n", source.trim_end());
    match read(source, &header)? {
        Ok(file) => {
            for (command, arguments) in &header.commands {
                let section = (command.run)(&file, arguments).map_err(|e| format!("{}: {e}", command.name))?;
                write!(snapshot, "\n==== {}{}{arguments} ====\n{section}", command.name, if arguments.is_empty() { "" } else { " " })
                    .expect("a string");
            }
        }
        Err(errors) => write!(snapshot, "\n==== errors ====\n{errors}").expect("a string"),
    }
    Ok(snapshot)
}

/// The graph and the data of a file that is not about errors.
///
/// # Errors
/// When the file is not as it must be.
pub fn open(source: &str) -> Result<File, String> {
    read(source, &Header::read(source)?)?
}

/// What the comments of a file say.
struct Header {
    commands: Vec<(&'static Command, String)>,
    dims: Bindings,
    inputs: BTreeMap<String, Tensor>,
    /// Expected errors with their lines.
    errors: Vec<(u32, String)>,
}

impl Header {
    fn read(source: &str) -> Result<Header, String> {
        let mut header = Header { commands: vec![], dims: Bindings::new(), inputs: BTreeMap::new(), errors: vec![] };
        for (i, line) in source.lines().enumerate() {
            if let Some((_, message)) = line.split_once("//~ ERROR: ") {
                header.errors.push((i as u32 + 1, message.trim().into()));
            }
        }
        for line in source.lines().map_while(|l| l.strip_prefix("//")).map(str::trim) {
            if let Some(command) = line.strip_prefix("test:") {
                let (name, arguments) = command.trim().split_once(' ').unwrap_or((command.trim(), ""));
                let Some(command) = COMMANDS.iter().find(|c| c.name == name) else {
                    let known: Vec<&str> = COMMANDS.iter().map(|c| c.name).collect();
                    return Err(format!("there is no command {name}; the commands are: {}", known.join(", ")));
                };
                header.commands.push((command, arguments.trim().into()));
            } else if let Some((name, value)) = line.strip_prefix("dim ").and_then(|d| d.split_once('=')) {
                let value = value.trim().parse().map_err(|e| format!("{line}: {e}"))?;
                header.dims.insert(Symbol::new(name.trim()), value);
            } else if let Some(constant) = line.strip_prefix("input ") {
                let graph = text::parse(&format!("tfc.ir 1 const {constant}"), None).map_err(|e| e.to_string())?;
                let (v, data) = graph.values().next().expect("one constant");
                let name = data.name.as_deref().unwrap_or_default();
                header.inputs.insert(name.into(), graph.as_const(v).expect("a constant").clone());
            }
        }
        if header.commands.is_empty() {
            return Err("the file starts with no command such as `// test: parse`".into());
        }
        Ok(header)
    }
}

/// Reads and checks the graph. The inner error is the text of errors that the file expects.
fn read(source: &str, header: &Header) -> Result<Result<File, String>, String> {
    let (graph, lines) = match text::parse_with_lines(source, None) {
        Ok(parsed) => parsed,
        Err(e) => {
            expect_errors(header, &[(e.line, e.message.clone())])?;
            return Ok(Err(format!("{e}\n")));
        }
    };
    check_round_trip(&graph)?;
    let errors = verify(&graph).err().unwrap_or_default();
    let located: Vec<(u32, String)> = errors.iter().map(|e| (line_of(&lines, e), e.to_string())).collect();
    expect_errors(header, &located)?;
    if !errors.is_empty() {
        return Ok(Err(located.iter().map(|(line, message)| format!("{line}: {message}\n")).collect()));
    }
    for name in header.inputs.keys() {
        let known = graph.inputs().iter().any(|&v| graph.value(v).name.as_deref() == Some(name));
        known.then_some(()).ok_or_else(|| format!("data is given for {name}, which is not an input"))?;
    }
    Ok(Ok(File { graph, dims: header.dims.clone(), inputs: header.inputs.clone() }))
}

fn expect_errors(header: &Header, found: &[(u32, String)]) -> Result<(), String> {
    if found == header.errors {
        return Ok(());
    }
    let list = |errors: &[(u32, String)]| errors.iter().map(|(line, m)| format!("  line {line}: {m}\n")).collect::<String>();
    let (expected, found) = (list(&header.errors), list(found));
    Err(format!("errors differ from the `//~ ERROR:` comments.\nexpected:\n{expected}found:\n{found}"))
}

/// The line where the part of an error is written.
fn line_of(lines: &Lines, error: &VerifyError) -> u32 {
    let lines = error.inside.iter().try_fold(lines, |l, n| l.nested.get(n));
    let Some(lines) = lines else { return 0 };
    match &error.part {
        Part::Symbol(s) => lines.symbols.get(s).copied().unwrap_or(0),
        Part::Check(i) => lines.checks[*i],
        Part::Value(v) => lines.values[*v],
        Part::Node(n) => lines.nodes[*n],
        Part::Output(i) => lines.outputs[*i],
    }
}

/// Checks that a graph prints and reads back as itself.
///
/// # Errors
/// What differs.
pub fn check_round_trip(graph: &Graph) -> Result<(), String> {
    let print = |g: &Graph| {
        let (mut text, mut blob) = (vec![], vec![]);
        text::write(g, &mut text, Some(&mut blob)).map_err(|e| e.to_string())?;
        Ok::<_, String>((String::from_utf8(text).expect("text is UTF-8"), bytes::Bytes::from(blob)))
    };
    let (printed, blob) = print(graph)?;
    let read = text::parse(&printed, Some(blob.clone())).map_err(|e| format!("what was printed does not parse:\n{e}\n{printed}"))?;
    let again = print(&read)?;
    if again != (printed.clone(), blob) {
        return Err(format!("the text is not stable. First:\n{printed}\nthen:\n{}", again.0));
    }
    if read != *graph {
        return Err(format!("the graph that was read back is another one:\n{read}\nnot\n{graph}"));
    }
    Ok(())
}

// Commands.

fn command_parse(file: &File, _: &str) -> Result<String, String> {
    Ok(file.graph.to_string())
}

fn command_run(file: &File, _: &str) -> Result<String, String> {
    let (bindings, inputs) = file.data()?;
    let mut out = String::new();
    for (s, n) in &bindings {
        writeln!(out, "dim {s} = {n}").expect("a string");
    }
    let names = file.graph.inputs().iter().map(|&v| file.graph.value(v).name.as_deref().unwrap_or_default());
    out += &show("input", names.zip(&inputs).filter(|(name, _)| !file.inputs.contains_key(*name)));
    match file.graph.evaluate(&inputs, &bindings) {
        Ok(outputs) => out += &show("output", file.graph.outputs().iter().map(|o| &*o.name).zip(&outputs)),
        Err(e) => writeln!(out, "run-time error: {e}").expect("a string"),
    }
    Ok(out)
}

/// Tensors as the text form writes constants.
fn show<'a>(what: &str, tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> String {
    let mut graph = Graph::default();
    for (name, t) in tensors {
        graph.add_const(t.clone(), Some(name.into()));
    }
    let text = graph.to_string();
    text.lines().filter_map(|l| l.strip_prefix("const")).map(|l| format!("{what}{l}\n")).collect()
}

fn command_native(file: &File, _: &str) -> Result<String, String> {
    let (bindings, inputs) = file.data()?;
    let wanted = file.graph.evaluate(&inputs, &bindings);
    let tolerance = |elem, level| Tolerance::roundings(native::precision(&file.graph, level, elem), 64.0, 1.0);
    let mut out = String::new();
    for level in [OptLevel::O0, OptLevel::O1, OptLevel::O2] {
        let graph = optimize(&file.graph, level);
        let verified = verify(&graph).map_err(|errors| format!("after {level:?}: {}", errors[0]))?;
        let program = schedule(&verified).map_err(|e| format!("{level:?}: {e}"))?;
        for cpu in cpus() {
            let found = try_run(&mut load(&program, Some(cpu)), &graph, &inputs);
            let same = match (&wanted, &found) {
                (Ok(wanted), Ok(found)) => native::compare(wanted, found, |elem| tolerance(elem, level)),
                (Err(_), Err(e)) if e.status() == Some(Status::IndexRange) => Ok(()),
                (Err(e), Ok(_)) => Err(format!("only the interpreter says: {e}")),
                (_, Err(e)) => Err(format!("native code says: {e}")),
            };
            same.map_err(|e| format!("{level:?} on {cpu}: {e}\n{graph}"))?;
        }
        writeln!(out, "{level:?}").expect("a string");
        for step in &program.steps {
            writeln!(out, "  {}: {}", program.kernels[step.kernel].body.kind(), step.label).expect("a string");
        }
    }
    if let Err(e) = wanted {
        writeln!(out, "run-time error: {e}").expect("a string");
    }
    Ok(out)
}

fn command_pass(file: &File, names: &str) -> Result<String, String> {
    let passes = tfc_passes::parse_passes(names).map_err(|e| e.to_string())?;
    let (bindings, inputs) = file.data()?;
    let mut out = String::new();
    let before = file.graph.evaluate(&inputs, &bindings);
    let check = |ran: &tfc_passes::Ran| {
        writeln!(out, "// {}: {}", ran.pass.name, ran.stats).expect("a string");
        check_round_trip(ran.graph)?;
        verify(ran.graph).map_err(|errors| {
            let list: String = errors.iter().map(|e| format!("  {e}\n")).collect();
            format!("the graph is not valid after {}:\n{list}{}", ran.pass.name, ran.graph)
        })?;
        compare(&before, &ran.graph.evaluate(&inputs, &bindings)).map_err(|e| format!("after {}: {e}\n{}", ran.pass.name, ran.graph))?;
        Ok(std::ops::ControlFlow::Continue(()))
    };
    let graph = tfc_passes::run_pipeline::<PassFault>(file.graph.clone(), &passes, &Default::default(), check).map_err(|e| e.0)?;
    out += &graph.to_string();
    Ok(out)
}

/// What quantization may change outputs by, relative to them.
const QUANTIZATION_ERROR: f64 = 0.25;

fn command_quantize(file: &File, arguments: &str) -> Result<String, String> {
    let (spec, names) = arguments.split_once(' ').ok_or("expected a scheme and passes")?;
    let spec = spec.parse().map_err(|e: tfc_passes::quantize::SpecError| e.to_string())?;
    let cx = tfc_passes::Context { quant: Some(tfc_passes::QuantConfig::new(spec)), ..Default::default() };
    let passes = tfc_passes::parse_passes(names).map_err(|e| e.to_string())?;
    let (bindings, inputs) = file.data()?;
    let mut out = String::new();
    let check = |ran: &tfc_passes::Ran| {
        writeln!(out, "// {}: {}", ran.pass.name, ran.stats).expect("a string");
        for e in &ran.stats.ledger {
            let error = e.weight_error.map_or(String::new(), |e| format!(", weights off by {:.1}%", 100.0 * e));
            writeln!(out, "//   {}: {}{error} ({})", e.loc, e.spec, e.reason).expect("a string");
        }
        check_round_trip(ran.graph)?;
        verify(ran.graph).map_err(|errors| format!("the graph is not valid after {}: {}\n{}", ran.pass.name, errors[0], ran.graph))?;
        Ok(std::ops::ControlFlow::Continue(()))
    };
    let graph = tfc_passes::run_pipeline::<PassFault>(file.graph.clone(), &passes, &cx, check).map_err(|e| e.0)?;
    let evaluate = |g: &Graph| g.evaluate(&inputs, &bindings).map_err(|e| e.to_string());
    for (i, (wanted, found)) in evaluate(&file.graph)?.iter().zip(evaluate(&graph)?).enumerate() {
        if wanted.ty() != found.ty() {
            return Err(format!("output {i} is {}, not {}", found.ty(), wanted.ty()));
        }
        let error = crate::models::relative_error(&found, wanted);
        if error > QUANTIZATION_ERROR {
            return Err(format!("output {i} is off by {error}"));
        }
    }
    out += &graph.to_string();
    Ok(out)
}

/// What can go wrong in a pipeline, as text.
struct PassFault(String);

impl From<tfc_passes::PassError> for PassFault {
    fn from(e: tfc_passes::PassError) -> PassFault {
        PassFault(e.to_string())
    }
}

impl From<String> for PassFault {
    fn from(e: String) -> PassFault {
        PassFault(e)
    }
}

type Outcome = Result<Vec<Tensor>, tfc_ir::ops::EvalError>;

/// Compares outputs: integers exactly, floats up to rounding that a rewrite may change.
fn compare(wanted: &Outcome, found: &Outcome) -> Result<(), String> {
    let (wanted, found) = match (wanted, found) {
        (Ok(wanted), Ok(found)) => (wanted, found),
        (Err(_), Err(_)) => return Ok(()),
        (Ok(_), Err(e)) | (Err(e), Ok(_)) => return Err(format!("only one of both graphs fails: {e}")),
    };
    for (i, (w, f)) in wanted.iter().zip(found).enumerate() {
        if (w.elem(), w.sizes()) != (f.elem(), f.sizes()) {
            return Err(format!("output {i} is {}, not {}", f.ty(), w.ty()));
        }
        let tolerance = if w.elem().is_float() { 1e-4 } else { 0.0 };
        let near = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs()));
        if let Some(at) = (0..w.len()).find(|&at| !near(w.get(at).to_f64(), f.get(at).to_f64())) {
            return Err(format!("output {i} differs at {at}: {:?}, not {:?}", f.get(at), w.get(at)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_expectations_are_checked() {
        let fault = |text: &str| super::test(text).expect_err("a fault");
        assert!(fault("tfc.ir 1\n").contains("starts with no command"));
        assert!(fault("// test: tickle\ntfc.ir 1\n").contains("the commands are: parse, verify, native, run, quantize, pass"));
        assert!(fault("// test: parse\ntfc.ir 1\ninput %x: f33[]\n").contains("line 3: expected a type"));
        assert!(fault("// test: parse\ntfc.ir 1 //~ ERROR: anything\n").contains("line 2: anything"));
        assert!(fault("// test: run\n// input %y: f32[1] = [1.0]\ntfc.ir 1\n").contains("y, which is not an input"));
        assert!(super::test("// test: verify\ntfc.ir 1\n").unwrap().ends_with("==== verify ====\nvalid\n"));
    }

    #[test]
    fn passes_that_change_outputs_are_found() {
        let one = || Ok(vec![Tensor::of(&[1], vec![1.0f32])]);
        let two = || Ok(vec![Tensor::of(&[1], vec![2.0f32])]);
        assert_eq!(compare(&one(), &one()), Ok(()));
        assert!(compare(&one(), &two()).unwrap_err().contains("differs at 0"));
    }
}
