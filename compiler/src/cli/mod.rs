//! The command line: one file per sub-command, and what they share.

mod bench;
mod bisect;
mod check;
mod compile;
mod console;
mod hwbench;
mod inspect;
mod ledger;
mod options;
mod run;
mod shell;
mod source;
mod trace;
mod verify;

use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use console::Console;
use std::any::Any;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;
use tfc::diag::{Diagnostic, Result};
use tfc::scratch;

/// The environment variable with options that are put before those of the command line.
const FLAGS_VARIABLE: &str = "TFC_FLAGS";

/// What the first panic says, and where it is.
static PANIC: OnceLock<String> = OnceLock::new();

const AFTER_HELP: &str = "\
Examples:
  tfc compile bert.onnx -o bert              a bundle: object, library, header, weights, example
  tfc run bert --inputs in.npz --outputs out.npz
  tfc bench bert --shape input_ids=1x128,attention_mask=1x128 --threads 1
  tfc verify bert.onnx --inputs in.npz       compiled code against the interpreter
  tfc check bert.onnx                        what is not supported, everything at once
  tfc bisect bert.onnx --inputs in.npz       which layer and which pass makes a difference
  tfc hwbench                                what this machine can do

Environment:
  TFC_FLAGS   options put before those of the command line, such as `-O2 --color=never`; those
              that the sub-command does not have are ignored
  TFC_CPU     the CPU variant that run, bench, verify, bisect and hwbench use, such as `baseline`
  NO_COLOR    no colours

Exit codes:
  0  fine
  1  the input is bad, or an operation failed
  2  wrong usage
  3  the model uses something that is not supported
  4  an accuracy budget was missed

With --json, a failure is an object in the last line of standard error:
  {\"error\":{\"code\":1,\"message\":\"...\",\"places\":[],\"notes\":[],\"help\":[]}}";

/// An ahead-of-time compiler for transformers: ONNX in, native objects out.
#[derive(Parser)]
#[command(name = "tfc", version, after_help = AFTER_HELP, args_override_self = true, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Colours in messages.
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", global = true)]
    color: options::Color,
    /// Say more; twice for even more.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Say nothing but errors and results.
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Compile(Box<compile::Args>),
    Run(run::Args),
    Bench(bench::Args),
    Verify(verify::Args),
    Check(check::Args),
    Inspect(inspect::Args),
    Bisect(bisect::Args),
    Hwbench(hwbench::Args),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// Parses the command line, the name of the program first, runs the sub-command and says what went wrong. `start` is when the
/// process started, as far as it can tell. Returns the exit code. For the main thread of a program that does nothing else.
pub fn main(args: Vec<OsString>, start: Instant) -> u8 {
    let args = match with_default_flags(args) {
        Ok(args) => args,
        Err(d) => return fail(&d, &Console::new(options::Color::Auto, 0, false)),
    };
    let command = Cli::command().color(clap_color(&args));
    let json = args.iter().any(|a| a == "--json");
    let cli = match command.try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(e) if json && e.use_stderr() => return fail(&wrong_usage(&e), &Console::new(options::Color::Never, 0, false).with_json(true)),
        Err(e) => {
            let _ = e.print();
            return e.exit_code() as u8;
        }
    };
    let console = Console::new(cli.color, cli.verbose, cli.quiet).with_json(json);
    files_have_limits();
    // Without the handlers the next process removes what a signal leaves.
    let _ = scratch::end_on_signals();
    let run = || match cli.command {
        Command::Compile(args) => compile::run(&args, &console).map(drop),
        Command::Run(args) => run::run(&args, &console),
        Command::Bench(args) => bench::run(&args, &console, start),
        Command::Verify(args) => verify::run(&args, &console),
        Command::Check(args) => check::run(&args, &console),
        Command::Inspect(args) => inspect::run(&args, &console),
        Command::Bisect(args) => bisect::run(&args, &console),
        Command::Hwbench(args) => hwbench::run(&args, &console),
        Command::Completions(args) => shell::completions(&args, Cli::command(), &console),
        Command::Man(args) => shell::man(&args, Cli::command(), &console),
    };
    std::panic::set_hook(Box::new(|info| {
        // The first one is the cause.
        let _ = PANIC.set(info.to_string());
    }));
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(Ok(())) => 0,
        Ok(Err(d)) => fail(&d, &console),
        Err(_) => fail(&Diagnostic::bug(PANIC.get().map_or("tfc panicked", |text| text)), &console),
    }
}

/// Makes a file that grows beyond the limit of the process (`ulimit -f`) an error of the writer, which cleans up,
/// instead of a signal that ends the process.
fn files_have_limits() {
    #[cfg(unix)]
    {
        // Without the handler the signal ends the process, as it does for others: no reason to do nothing at all.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Default::default());
    }
}

fn fail(d: &Diagnostic, console: &Console) -> u8 {
    scratch::wait_if_ending();
    console.error(d);
    d.exit as u8
}

/// Runs `tfc compile` with these arguments, for a program that does other things too: neither its signals nor its panics are touched,
/// and standard error only gets what `--verbose`, `--print-ir-after` and the like ask for. Returns the file or the folder of the output.
///
/// # Errors
/// As the command line, in the same words; wrong arguments are of the kind [`Exit::Usage`](crate::diag::Exit::Usage).
pub fn compile(args: impl IntoIterator<Item = OsString>) -> Result<PathBuf> {
    let args = ["tfc", "compile"].into_iter().map(OsString::from).chain(args);
    let cli = Cli::command().color(ColorChoice::Never).try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m));
    let cli = cli.map_err(|e| wrong_usage(&e))?;
    let Command::Compile(args) = cli.command else { return Err(Diagnostic::usage("expected the arguments of `tfc compile`")) };
    let console = Console::new(cli.color, cli.verbose, cli.verbose == 0 || cli.quiet);
    let panicked = |payload: Box<dyn Any + Send>| {
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        Diagnostic::bug(text.unwrap_or("tfc panicked"))
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| compile::run(&args, &console))).unwrap_or_else(|p| Err(panicked(p)))
}

/// What clap says, without its usage lines.
fn wrong_usage(e: &clap::Error) -> Box<Diagnostic> {
    let text = e.to_string();
    let what = text.split("\n\nUsage:").next().unwrap_or_default();
    Diagnostic::usage(what.strip_prefix("error: ").unwrap_or(what).trim_end())
}

/// The arguments with those of `TFC_FLAGS` behind the name of the sub-command.
fn with_default_flags(mut args: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(flags) = std::env::var_os(FLAGS_VARIABLE).filter(|f| !f.is_empty()) else { return Ok(args) };
    let flags = flags.to_str().ok_or_else(|| Diagnostic::usage(format!("{FLAGS_VARIABLE} is not text in UTF-8")))?;
    let words = split_words(flags).map_err(|e| Diagnostic::usage(format!("{FLAGS_VARIABLE}: {e}")).note(flags))?;
    let cli = Cli::command();
    let Some((at, own)) = (1..args.len()).find_map(|i| Some((i + 1, cli.get_subcommands().find(|c| args[i] == c.get_name())?))) else {
        return Ok(args);
    };
    args.splice(at..at, applicable(words, own, &cli).into_iter().map(OsString::from));
    Ok(args)
}

/// The words without options that other sub-commands have and `own` has not.
fn applicable(words: Vec<String>, own: &clap::Command, cli: &clap::Command) -> Vec<String> {
    let find = |c: &clap::Command, word: &str| {
        let long = word.strip_prefix("--").map(|w| w.split('=').next().unwrap_or(w));
        let short = word.strip_prefix('-').and_then(|w| w.chars().next());
        let is = |a: &&clap::Arg| if long.is_some() { a.get_long() == long } else { short.is_some() && a.get_short() == short };
        c.get_arguments().find(is).cloned()
    };
    let mut kept = vec![];
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if find(own, &word).is_some() || find(cli, &word).is_some() {
            kept.push(word);
            continue;
        }
        match cli.get_subcommands().find_map(|c| find(c, &word)) {
            // Its value goes with it, unless it is in the same word.
            Some(a) => {
                let inside = if word.starts_with("--") { word.contains('=') } else { word.len() > 2 };
                if a.get_action().takes_values() && !a.is_require_equals_set() && !inside {
                    words.next();
                }
            }
            None => kept.push(word),
        }
    }
    kept
}

/// Splits a text into words as a shell does: at blanks, but not within quotes; a backslash takes the
/// next character as it is, outside of single quotes.
fn split_words(text: &str) -> Result<Vec<String>, String> {
    let mut words = vec![];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => {
                let next = chars.next().ok_or("it ends with a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(q) = quote {
        return Err(format!("the quote {q} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// The colours of clap's own messages: they are printed before the arguments are known.
fn clap_color(args: &[OsString]) -> ColorChoice {
    let words: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
    let after = |i: usize| words.get(i + 1).copied();
    let value =
        (0..words.len()).rev().find_map(|i| words[i].strip_prefix("--color=").or_else(|| after(i).filter(|_| words[i] == "--color")));
    match value {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ => ColorChoice::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_other_commands_are_left_out() {
        let cli = Cli::command();
        let own = |name: &str| cli.find_subcommand(name).unwrap();
        let words = || split_words("-O2 --color never --passes a,b --stats=json --verify-each -o x --nothing").unwrap();
        assert_eq!(applicable(words(), own("inspect"), &cli), ["--color", "never", "--nothing"]);
        assert_eq!(applicable(words(), own("run"), &cli), ["-O2", "--color", "never", "--passes", "a,b", "--verify-each", "--nothing"]);
        assert_eq!(applicable(words(), own("compile"), &cli), words());
    }

    #[test]
    fn programs_compile_in_the_words_of_the_command_line() {
        let error = |args: &[&str]| compile(args.iter().map(OsString::from)).unwrap_err();
        let unknown = error(&["--nothing", "m.onnx"]);
        assert_eq!(unknown.exit, crate::diag::Exit::Usage);
        assert!(unknown.what.starts_with("unexpected argument '--nothing' found"), "{unknown}");
        assert!(error(&["--dim=seq=x", "m.onnx"]).what.contains("`x` is not a size"));
        assert!(error(&["--quant=w3a3", "m.onnx"]).what.starts_with("--quant w3a3: "));
        assert!(error(&["/dev/null/m.onnx"]).text().contains("/dev/null/m.onnx"));
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        assert_eq!(split_words(r#" -O2  --dim 'a b=1' "x\"y"z --p='' \  "#).unwrap(), ["-O2", "--dim", "a b=1", "x\"yz", "--p=", " "]);
        assert!(split_words("'open").is_err());
        assert!(split_words("end\\").is_err());
    }
}
