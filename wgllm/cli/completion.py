"""``wgllm completion``: scripts that make a shell complete commands, options and model names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from wgllm.cli.console import CONTEXT

# click's own script for bash replaces the whole word, but bash cuts words at colons, which names of models have:
# here the words come from the line itself, and what stands before the last colon is cut off the answers.
_BASH = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" words current prefix="" type value response
    read -ra words <<< "$line"
    current="${line##*[[:space:]]}"
    local count=${#words[@]}
    [[ -n $current ]] && count=$((count - 1))
    response=$(env COMP_WORDS="$line" COMP_CWORD="$count" %(complete_var)s=bash_complete "$1")
    if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
        prefix="${current%%"${current##*:}"}"
    fi
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir|file) compopt -o default 2> /dev/null ;;
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
        esac
    done <<< "$response"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@click.command("completion", context_settings=CONTEXT)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion_command(shell: str) -> None:
    """Print a script that makes SHELL complete commands, options and names of models.

    \b
    Examples:
      eval "$(wgllm completion bash)"                          in ~/.bashrc
      eval "$(wgllm completion zsh)"                           in ~/.zshrc
      wgllm completion fish > ~/.config/fish/completions/wgllm.fish

    \b
    See also:
      wgllm list    the names of models
    """
    from wgllm.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(cli, {}, "wgllm", "_WGLLM_COMPLETE")
    if shell == "bash":
        click.echo(_BASH % complete.source_vars())
    else:
        click.echo(complete.source())
