//! `tfc completions` and `tfc man`: what a shell and a reader of manuals get from the definition of the command line.

use super::console::Console;
use clap::Command;
use tfc::diag::{Diagnostic, Result};

/// Print what completes the command line in a shell.
///
/// Sub-commands, options, their values and files.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc completions bash > ~/.local/share/bash-completion/completions/tfc
  tfc completions zsh > ~/.zfunc/_tfc        with ~/.zfunc in fpath
  tfc completions fish > ~/.config/fish/completions/tfc.fish")]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: clap_complete::Shell,
}

/// Print a manual page.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc man > ~/.local/share/man/man1/tfc.1
  tfc man compile > ~/.local/share/man/man1/tfc-compile.1
  tfc man compile | man -l -")]
pub struct ManArgs {
    /// The sub-command; without one, the page of tfc.
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Prints the completions of `command`.
pub fn completions(args: &CompletionsArgs, mut command: Command, console: &Console) -> Result<()> {
    let mut text = vec![];
    clap_complete::generate(args.shell, &mut command, "tfc", &mut text);
    console.result(&String::from_utf8_lossy(&text))
}

/// Prints the page of `command`, or of one of its sub-commands.
pub fn man(args: &ManArgs, mut command: Command, console: &Console) -> Result<()> {
    command.build();
    if let Some(name) = &args.command {
        let known: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_string()).collect();
        let Some(found) = command.find_subcommand(name) else {
            return Err(Diagnostic::usage(format!("man {name}: there is no such sub-command"))
                .note(format!("there are {}", known.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "))));
        };
        command = found.clone();
        command = command.display_name(format!("tfc-{name}"));
    }
    let mut text = vec![];
    clap_mangen::Man::new(command).render(&mut text).map_err(|e| Diagnostic::failed(format!("cannot make the manual page: {e}")))?;
    console.result(&String::from_utf8_lossy(&text))
}
