"""The `gsgen` command: a table of subcommands, each a plain function elsewhere.

A subcommand's module is imported only when it is asked for, so `gsgen doctor` works on a
machine where half the libraries are missing. tyro turns the function's typed arguments into
options; its docstring is the help text. An integer that the function returns is the exit code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

# words of the subcommand -> (module, function, what it does)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "doctor": ("gsgen_lib.doctor", "doctor", "what can this machine run?"),
    "data build": ("gsgen_lib.data.sweethome", "build", "rebuild the shipped objects"),
    "data render": ("gsgen_lib.data.prerender", "render_folder", "render your own meshes"),
    "data shard": ("gsgen_lib.data.shards", "write_shards", "write a training set as shards, to be streamed"),
    "train prior": ("gsgen_lib.systems.prior_training", "train_prior", "train the text-to-image prior"),
    "train scorer": ("gsgen_lib.systems.scorer_training", "train_scorer", "train the prompt scorer"),
    "train feedforward": ("gsgen_lib.systems.feed_forward_training", "train_feed_forward", "train the four-view reconstruction"),
    "train vae": ("gsgen_lib.systems.splat_vae_training", "train_splat_vae", "train the splat autoencoder"),
    "train diffusion": ("gsgen_lib.systems.splat_diffusion_training", "train_splat_diffusion", "train the latent diffusion"),
    "train var": ("gsgen_lib.systems.autoreconstructor_training", "train_autoreconstructor", "train the AutoReconstructor"),
    "train codes": ("gsgen_lib.systems.code_training", "train_codes", "train the diffusion over its codes"),
    "train density": ("gsgen_lib.systems.octree_density_training", "train_density", "train the octree density, three stages"),
    "train voxels": ("gsgen_lib.systems.sparse_voxels_training", "train_voxels", "train the four networks of sparse voxels"),
    "sample dreamgaussian": ("gsgen_lib.systems.dreamgaussian_sample", "sample_dreamgaussian",
                             "a prompt or a picture becomes Gaussians and a textured mesh"),
    "view": ("gsgen_lib.viz", "view_scene", "look at a splat file"),
    "bench": ("gsgen_lib.bench", "command", "run a benchmark (--list names them)"),
}


def usage() -> str:
    """The list of subcommands.

    >>> "gsgen doctor" in usage()
    True
    """
    lines = [f"  gsgen {words:<12} {text}" for words, (_, _, text) in COMMANDS.items()]
    return "\n".join(["usage: gsgen COMMAND ...", "", *lines, "", "gsgen COMMAND --help: more"])


def split(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Subcommand (None if there is none of that name) and the arguments left for it.

    >>> split(["data", "build", "--jobs", "2"])
    ('data build', ['--jobs', '2'])
    >>> split(["dance"])
    (None, ['dance'])
    """
    for length in (2, 1):
        words = " ".join(arguments[:length])
        if words in COMMANDS and len(arguments) >= length:
            return words, arguments[length:]
    return None, arguments


def function_of(words: str) -> Callable:
    """Import the function of a subcommand."""
    module, name, _ = COMMANDS[words]
    return getattr(importlib.import_module(module), name)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (``sys.argv`` by default); returns the exit code.

    2 means that the command is unknown or that this installation lacks what it needs.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    words, rest = split(arguments)
    if words is None:
        group = {name.split()[0] for name in COMMANDS if " " in name}  # `gsgen data -h` is a question, too
        asked = not arguments or arguments[-1] in ("-h", "--help") and (len(arguments) == 1 or arguments[0] in group)
        print(usage() if asked else f"gsgen: no command {arguments[0]!r}\n\n{usage()}")
        return 0 if asked else 2
    try:
        function = function_of(words)
    except ImportError as error:
        print(f"gsgen {words}: this installation lacks something: {error}", file=sys.stderr)
        return 2
    if words == "doctor" and not rest:  # no options to read, so it also works where tyro does not
        return function()
    if words == "bench":  # passes options on to the benchmark, so it reads them itself
        return function(rest)
    try:
        import tyro
    except Exception as error:  # also a damaged installation, which can raise anything
        print(f"gsgen {words}: this installation lacks something: tyro does not import: {error}", file=sys.stderr)
        return 2

    positional = (tyro.conf.PositionalRequiredArgs,)  # arguments without a default come without --name
    try:
        result = tyro.cli(function, prog=f"gsgen {words}", args=rest, config=positional)
    except (ValueError, OSError) as error:  # wrong input: the message says what, a traceback would hide it
        print(f"gsgen {words}: {error}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
