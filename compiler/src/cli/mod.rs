//! The command line: one file per sub-command, and what they share.

mod bench;
mod check;
mod compile;
mod console;
mod inspect;
mod options;
mod run;
mod source;
mod trace;
mod verify;

use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use console::Console;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;
use tfc::diag::{Diagnostic, Result};

/// The environment variable with options that are put before those of the command line.
const FLAGS_VARIABLE: &str = "TFC_FLAGS";

const AFTER_HELP: &str = "\
Examples:
  tfc compile bert.onnx -o bert              a bundle: object, library, header, weights, example
  tfc run bert --inputs in.npz --outputs out.npz
  tfc bench bert --shape input_ids=1x128,attention_mask=1x128 --threads 1
  tfc verify bert.onnx --inputs in.npz       compiled code against the interpreter
  tfc check bert.onnx                        what is not supported, everything at once

Environment:
  TFC_FLAGS   options put before those of the command line, such as `-O2 --color=never`
  TFC_CPU     the CPU variant that run, bench and verify use, such as `baseline`
  NO_COLOR    no colours

Exit codes:
  0  fine
  1  the input is bad, or an operation failed
  2  wrong usage
  3  the model uses something that is not supported
  4  an accuracy budget was missed";

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
}

/// Parses the command line, runs the sub-command and says what went wrong. `start` is when the process
/// started, as far as it can tell.
pub fn main(start: Instant) -> ExitCode {
    let args = match with_default_flags(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(d) => return fail(&d, &Console::new(options::Color::Auto, 0, false)),
    };
    let command = Cli::command().color(clap_color(&args));
    let cli = match command.try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(e.exit_code() as u8);
        }
    };
    let console = Console::new(cli.color, cli.verbose, cli.quiet);
    let result = match cli.command {
        Command::Compile(args) => compile::run(&args, &console),
        Command::Run(args) => run::run(&args, &console),
        Command::Bench(args) => bench::run(&args, &console, start),
        Command::Verify(args) => verify::run(&args, &console),
        Command::Check(args) => check::run(&args, &console),
        Command::Inspect(args) => inspect::run(&args, &console),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(d) => fail(&d, &console),
    }
}

fn fail(d: &Diagnostic, console: &Console) -> ExitCode {
    console.error(d);
    ExitCode::from(d.exit as u8)
}

/// The arguments with those of `TFC_FLAGS` behind the name of the sub-command.
fn with_default_flags(mut args: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(flags) = std::env::var_os(FLAGS_VARIABLE).filter(|f| !f.is_empty()) else { return Ok(args) };
    let flags = flags.to_str().ok_or_else(|| Diagnostic::usage(format!("{FLAGS_VARIABLE} is not text in UTF-8")))?;
    let words = split_words(flags).map_err(|e| Diagnostic::usage(format!("{FLAGS_VARIABLE}: {e}")).note(flags))?;
    let names: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_string()).collect();
    let at = args.iter().skip(1).position(|a| names.iter().any(|n| a == n.as_str())).map_or(args.len(), |i| i + 2);
    args.splice(at..at, words.into_iter().map(OsString::from));
    Ok(args)
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
    fn words_are_split_as_a_shell_does() {
        assert_eq!(split_words(r#" -O2  --dim 'a b=1' "x\"y"z --p='' \  "#).unwrap(), ["-O2", "--dim", "a b=1", "x\"yz", "--p=", " "]);
        assert!(split_words("'open").is_err());
        assert!(split_words("end\\").is_err());
    }
}
