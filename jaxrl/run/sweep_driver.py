"""The course of a sweep: what is trained when, depending on earlier outcomes."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import processes
from jaxrl._output import Lasting, one_line
from jaxrl.errors import Interrupted, UsageError
from jaxrl.record.folder import CONFIG, write_json
from jaxrl.record.shared_folder import open_folder
from jaxrl.run import sweep_results as results
from jaxrl.run.devices import Programs
from jaxrl.run.distributed import check_alike, loss_reported
from jaxrl.run.extension import new_seeds
from jaxrl.run.halving import highest, train_rungs
from jaxrl.run.lanes import Lane
from jaxrl.run.legs import Leg, Outcome, divide
from jaxrl.run.pbt import PBT, PBTSession, schedule
from jaxrl.run.placement import Placement
from jaxrl.run.ranking import configuration_score, rank_key
from jaxrl.run.signals import interruptible
from jaxrl.run.sweep_plans import PARTS, Course, before_added, population_too_large

SIZES = "sizes.json"
LONGEST = 210  # bytes of a variant's part of a folder's name; file systems allow 255 in all


def _sizes(path: Path | None) -> dict[str, int]:
    """Return the recorded numbers of members that lanes train at once."""
    known: dict[str, int] = {}
    return json.loads(path.read_text()) if path is not None and path.exists() else known


def slugs(names: Sequence[str]) -> list[str]:
    """Return each variant's part of a folder name: unique, and not too long.

    Parts that would be equal or too long end with the variant's index.
    """
    found = [re.sub(r"[^\w=.-]+", "-", name) for name in names]
    counts = Counter(found)
    for i, slug in enumerate(list(found)):
        if counts[slug] > 1 or len(slug.encode()) > LONGEST:
            found[i] = f"{slug.encode()[:LONGEST].decode(errors='ignore')}+{i}"
    return found


class Driver:
    """Trains a sweep, from its first leg to its results."""

    def __init__(self, course: Course) -> None:
        self.course, self.plans, self.folder = course, course.plans, course.folder
        self.lanes, self.ladder, self.ends = course.lanes, course.ladder, course.ends
        self.bar, self.intervals, self.outcomes = course.bar, course.intervals, course.outcomes
        self.slugs = slugs([variant.name for variant in self.plans.variants])

    def run(self, resume: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Train everything that is not trained yet; return the table and the summary."""
        check_alike(self.course.config())
        with ExitStack() as stack, loss_reported(resumable=self.folder is not None):
            if self.folder is not None:
                self._open(self.folder, resume, stack)
            stack.callback(self.bar.close)
            self.interrupted = stack.enter_context(interruptible())
            self.sizes = [self._size(v, lane) for v, lane in enumerate(self.lanes)]
            self._check_sizes()
            pbt = isinstance(self.plans.method, PBT)
            table, best = self._populations() if pbt else self._rungs()
            confirmed = self._confirm(best) if self.plans.confirm else None
            self.bar.close()
            alone = self._time_one(best) if self.plans.time_one else None
            summary = results.summarise(self.course, table, best, confirmed, alone)
            if self.folder is not None:
                write = partial(results.write, self.course, table, summary, self.report)
                processes.from_first(write)
        return table, summary

    def _open(self, folder: Path, resume: bool, stack: ExitStack) -> None:
        """Lock the sweep's folder, and add any new seeds to its record."""
        config, cohorts = self.course.config(), self.plans.cohorts
        known = config
        if resume and len(cohorts) > 1 and new_seeds(folder, self.plans.seeds):
            known = before_added(config)
        opened = open_folder(folder, known, resume, self.report)
        stack.callback(opened.close)
        if resume:
            opened.config = config
            opened.write_config()

    def report(self, text: str) -> None:
        """Show the user a line; a quiet sweep shows only warnings."""
        shown = not self.plans.settings.quiet or text.startswith("warning")
        if shown and processes.is_first():
            print(one_line(text), file=Lasting(sys.stderr))

    def _size(self, v: int, lane: Lane) -> int:
        """Return how many members of a lane train at once, as decided when it began."""
        path = None if self.folder is None else self.folder / SIZES
        known: dict[str, int] = processes.from_first(partial(_sizes, path))
        if str(v) in known:
            return int(known[str(v)])
        plans = self.plans
        wanted = len(plans.configurations) * len(plans.seeds)
        if plans.max_parallel is not None:
            size, line = min(wanted, plans.max_parallel), ""
        else:
            size, line = lane.most_members(wanted)
        if path is not None:
            processes.from_first(partial(write_json, path, known | {str(v): size}))
        if size < wanted:
            line = line or f"max-parallel is {size}"
            self.report(f"{wanted} members train in parts of at most {size} ({line})")
        return size

    def _check_sizes(self) -> None:
        count = len(self.plans.configurations)
        if isinstance(self.plans.method, PBT) and min(self.sizes) < count:
            raise UsageError(population_too_large(count, min(self.sizes)))
        steps = []
        for lane, ends in zip(self.lanes, self.ends, strict=True):
            reached = [0, *(lane.full.position(end).step for end in ends)]
            pairs = zip(self.ladder, itertools.pairwise(reached), strict=True)
            steps.append(sum(rung.keep * (end - begin) for rung, (begin, end) in pairs))
        each = sum(steps) / len(steps)
        again = self.plans.confirm * self.lanes[0].full.position(self.lanes[0].full.total).step
        self.bar.total = round(each * len(self.plans.seeds)) + again

    def _parts(self, own: list[int], most: int) -> list[tuple[str, tuple]]:
        """Return the name and (configurations, seeds) of each part in which members are trained."""
        found = []
        for i, cohort in enumerate(self.plans.cohorts):
            since = f"seed{cohort[0]}-" if i else ""
            parts = divide(own, cohort, most)
            found += [(f"{since}part{j}", part) for j, part in enumerate(parts)]
        return found

    def _leg(self, lane: Lane, name: str, part: tuple, begins: int, ends: int) -> Leg:
        slug = self.slugs[self.lanes.index(lane)]
        configurations, seeds = part
        return Leg("_".join(filter(None, (slug, name))), configurations, seeds, begins, ends)

    def _train(self, lane: Lane, leg: Leg, **options: Any) -> Outcome:
        try:
            return lane.train(leg, self.interrupted, **options)
        except Interrupted as error:
            again = "" if self.folder is None else "; continue it with --resume"
            raise Interrupted(f"{error} of part {leg.name}{again}", error.signum) from None

    def _rungs(self) -> tuple[list[dict[str, Any]], results.Best]:
        """Train the rungs of a ladder; a grid is one rung."""
        candidates = self.plans.candidates
        before: list[list[Leg]] = [[] for _ in self.lanes]

        def train(k: int, alive: list[int]) -> tuple[list[tuple[float, float]], dict]:
            found: dict[int, results.Trained] = {}
            for v, lane in enumerate(self.lanes):
                own = [candidates[i][1] for i in alive if candidates[i][0] == v]
                if not own:
                    continue
                begins, ends = self.ends[v][k - 1] if k else 0, self.ends[v][k]
                rung = f"rung{k}-" if len(self.ladder) > 1 else ""
                legs = [
                    self._leg(lane, f"{rung}{name}", part, begins, ends)
                    for name, part in self._parts(own, self.sizes[v])
                ]
                outcomes, goes_on = [], k + 1 < len(self.ladder)
                for leg in legs:
                    gather = partial(lane.gather, before[v], leg.members) if k else None
                    outcomes.append(self._train(lane, leg, origin=gather, keep=goes_on))
                lane.forget(before[v])
                before[v] = legs
                for c in own:
                    members = results.of_configuration(outcomes, c)
                    found[candidates.index((v, c))] = members
                self.outcomes += [(v, each) for each in outcomes]
            return [rank_key(configuration_score(found[i].scores)) for i in alive], found

        rungs = train_rungs(self.ladder, train)
        table = results.table_of_rungs(self.course, rungs)
        alive, scores, found = rungs[-1]
        (winner,) = highest(scores, 1)
        v, c = candidates[alive[winner]]
        trained: results.Trained = found[alive[winner]]
        return table, results.Best(v, self.plans.configurations[c], c, trained, None)

    def _populations(self) -> tuple[list[dict[str, Any]], results.Best]:
        """Train the populations of PBT."""
        plans, count = self.plans, len(self.plans.configurations)
        assert isinstance(plans.method, PBT)
        for v, lane in enumerate(self.lanes):
            session = partial(PBTSession, pbt=plans.method, interval=self.intervals[v])
            for name, part in self._parts([0], self.sizes[v] // count):
                every = list(range(count)), part[1]
                leg = self._leg(lane, name, every, 0, lane.full.total)
                self.outcomes.append((v, self._train(lane, leg, session=session)))
        return results.table_of_populations(self.course)

    def _confirm(self, best: results.Best) -> Outcome:
        """Train the best configuration or schedule on seeds that were not used to select it."""
        plans, lane = self.plans, self.lanes[best.variant]
        first = max(plans.seeds) + 1
        fresh = list(range(first, first + plans.confirm))
        name = "confirm" if len(plans.cohorts) == 1 else f"confirm-seed{first}"
        if best.member is None:
            part, own = ([best.configuration_index], fresh), f"config{best.configuration_index}"
            leg = self._leg(lane, f"{name}-{own}", part, 0, lane.full.total)
            older = self._leg(lane, name, part, 0, lane.full.total)  # in records without ``own``
            if processes.from_first(partial(self._is_of, older, best.configuration)):
                leg = older
            return self._train(lane, leg)
        lineage, slot, population = best.member
        found = schedule(lineage, plans.configurations, slot, population)
        session = partial(
            PBTSession,
            pbt=None,
            interval=self.intervals[best.variant],
            decisions=found.decisions(len(fresh)),
        )
        leg = self._leg(lane, name, ([found.slot], fresh), 0, lane.full.total)
        return self._train(lane, leg, session=session)

    def _is_of(self, leg: Leg, configuration: Mapping[str, float]) -> bool:
        """Return whether the leg's folder holds a run of this configuration alone."""
        if self.folder is None:
            return False
        try:
            known = json.loads((self.folder / PARTS / leg.name / CONFIG).read_text())["sweep"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(known == [configuration])

    def _time_one(self, best: results.Best) -> dict[str, float]:
        """Time the best configuration alone over a twentieth of a run; return seconds per run."""
        lane = self.lanes[best.variant]
        stage = lane.full.stages[-1]
        programs = Programs(stage.trainer, Placement(), lane.settings.eval_mode)
        sweep = {name: jnp.array([x], jnp.float32) for name, x in best.configuration.items()}
        data = programs.put_data(lane.variant.data if stage.trainer.needs_data else ())
        keys = jax.random.key(self.plans.seeds[0])[None]
        episodes = jax.random.split(jax.random.key(0), lane.settings.eval_episodes)
        began = time.monotonic()
        ts = jax.jit(programs.init)(sweep, keys, data)
        compiled = programs.compiled(sweep, ts, data, episodes)
        assert compiled.evaluate is not None
        ts, _ = jax.block_until_ready(compiled.chunk(sweep, ts, data, jnp.int32(1), jnp.int32(0)))
        compiling = time.monotonic() - began

        total = stage.schedule.total
        count = max(min(total - 1, max(total // 20, 10)), 1)
        began = time.monotonic()
        ts, _ = jax.block_until_ready(
            compiled.chunk(sweep, ts, data, jnp.int32(count), jnp.int32(1))
        )
        training = (time.monotonic() - began) / count * total
        began = time.monotonic()
        jax.block_until_ready(compiled.evaluate(sweep, ts, episodes))
        evaluations = 1 + -(-total // stage.schedule.eval_every)
        training += evaluations * (time.monotonic() - began)
        return {"compile_seconds": round(compiling, 2), "train_seconds": round(training, 2)}
