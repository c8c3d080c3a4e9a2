"""Many configurations x seeds of any other script, in one program; the best as a command line.

python experiments/sweep.py ppo --env gymnax/CartPole-v1 --num-seeds 16 \\
    --grid learning_rate=log:1e-4,1e-2,16
python experiments/sweep.py sac --env mjx/Hopper-v5 --num-seeds 4 --halving 2 --confirm 8 \\
    --random 32 actor_learning_rate=log:1e-4,3e-3 gamma=log1m:0.95,0.999
python experiments/sweep.py ppo --env gymnax/CartPole-v1 --num-seeds 4 --pbt \\
    --random 16 learning_rate=log:1e-5,1e-1
python experiments/sweep.py dqn --env gymnax/CartPole-v1 --grid gamma=0.97,0.99 \\
    --static num-envs=1,8

The first word is the name of a script or the path of a file. Its options follow, as they are
there; --run-dir is the folder of the sweep. ``sweep.py --resume --run-dir DIR`` continues it.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from jaxrl import cli, sweep
from jaxrl.cli import sweeping
from jaxrl.cli.resuming import with_recorded
from jaxrl.cli.sweep_command import command_of
from jaxrl.errors import UsageError


def main() -> None:
    """Train the sweep, and keep a record of it."""
    sweeping.check_once(sys.argv[1:])
    if any(word.startswith("--") for word in sys.argv[1:2]):  # no script is named
        sys.argv[1:] = with_recorded(sys.argv[1:])
    name, *words = sys.argv[1:] or [""]
    asked = {"-h", "--help"} & {name, *words}
    if asked:
        print(__doc__)
        with contextlib.suppress(SystemExit):
            sweeping.parse_sweep(["--help"])
    if name.startswith("-") or not name:
        if asked:
            return
        raise UsageError("the script is missing; name it first, as sweep.py ppo --grid gamma=0.9,1")
    script = sweeping.Script(name, Path(__file__).parent)
    if asked:
        script.compose(["--help"])
    own, others = sweeping.divided(words)
    options = sweeping.parse_sweep(own)
    tried, spaces = sweeping.configurations(options)
    variants, settings = sweeping.variants(script, others, options, tried[0])

    result = sweep(
        variants,
        configurations=tried,
        method=sweeping.method(options, spaces),
        confirm=options.confirm,
        max_parallel=options.max_parallel,
        time_one=options.time_one,
        command=None if options.pbt else command_of(script, others, variants, tried),
        **settings,
    )
    cli.report_sweep(result, quiet=settings.get("quiet", False))


if __name__ == "__main__":
    cli.launch(main)
