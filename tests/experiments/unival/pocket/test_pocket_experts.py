"""Experts of every kind on a dozen rows: what comes from what, once, with the same bits however often it is stopped."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import pytest
import torch

import merge
from experiments.errors import StudyError
from experiments.study.points import Expert
from experiments.unival.pocket.backbone import fresh_model
from experiments.unival.pocket.cache import user_cache
from experiments.unival.pocket.data import world_tokenizer
from experiments.unival.pocket.experts import expert_file, file_of, make_experts
from experiments.unival.pocket.kinds import step_of, with_parents
from experiments.unival.pocket.pipeline import Pocket, file_digest, finished, open_model
from experiments.unival.world.tables import read_world
from unival_core.checkpoint import load_model, save_model
from unival_core.config import CONFIGS
from unival_core.errors import UnivalError
from unival_core.tasks import TASKS
from unival_core.training import RewardOptions, recipes
from unival_core.training.recipes import REWARDS
from unival_core.training.state import RunFolder
from unival_core.vocabulary import TOKENIZER_KEY

RATATOUILLE, FUSING = Expert("vqa", "vqa", "ratatouille"), Expert("vqa", "vqa", "fusing")
JOINT, REWARD = Expert("all", "vqa+caption", "joint"), Expert("small", "grounding", "reward")
CAPTION = Expert("caption", "caption", "vanilla")
OTHERS = ("caption", "grounding", "entailment")


@pytest.fixture(scope="module", autouse=True)
def small():
    """Recipes of three updates with batches of two."""
    with pytest.MonkeyPatch.context() as patch:
        for name, task in TASKS.items():
            own = {**task.recipes.get("pocket", {}), "batch": 2, "updates": 3000, "save_every": 1}  # micro makes 3
            patch.setitem(TASKS, name, replace(task, recipes={"pocket": own}))
        for name in ("JOINT", "REWARD"):
            patch.setattr(f"experiments.unival.pocket.kinds.{name}", replace(getattr(recipes, name), batch=2))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory, micro_world):
    """A world and weights that stand for pretrained ones."""
    pocket = Pocket(tmp_path_factory.mktemp("experts") / "home", "micro")
    shutil.copytree(micro_world, pocket.world)
    model = fresh_model(CONFIGS["pocket"], 0)
    pocket.pretrained.parent.mkdir(parents=True)
    tokenizer = world_tokenizer(pocket.world, model.config)
    save_model(model, pocket.pretrained, metadata={TOKENIZER_KEY: tokenizer.to_json()})
    return pocket


@pytest.fixture(scope="module")
def made(home):
    """Experts of every kind, and the cache that they are kept in."""
    pocket = home.with_seed(3)
    make_experts(pocket, [RATATOUILLE, FUSING, JOINT, REWARD], 1, progress=False, cache=home.folder / "cache")
    return pocket


def run_of(file):
    return json.loads(file.with_name("run.json").read_text())


def modified(pocket):
    return {path: path.stat().st_mtime_ns for path in (pocket.folder / "experts").rglob("*") if path.is_file()}


def tensors(file):
    return merge.open_checkpoint(file)


# -- what comes from what


def test_steps_come_behind_what_they_start_from(home):
    files = [step.file for step in with_parents([step_of(home, RATATOUILLE), step_of(home, FUSING)])]
    assert len(set(files)) == len(files) == 3 + 3 + 1 + 1 + 1
    for task in OTHERS:
        vanilla, further = f"vanilla/{task}/last.safetensors", f"ratatouille/vqa/from-{task}/last.safetensors"
        assert files.index(vanilla) < files.index(further) < files.index("ratatouille/vqa/average.safetensors")
        assert files.index(vanilla) < files.index("fusing/vqa/average.safetensors")
    assert files.index("fusing/vqa/average.safetensors") < files.index("fusing/vqa/from-average/last.safetensors")


def test_every_run_notes_the_weights_it_started_from(home, made):
    for step in with_parents(step_of(made, expert) for expert in (RATATOUILLE, FUSING, JOINT, REWARD)):
        if step.tasks:
            start = file_of(made, step.parents[0] if step.parents else None)
            assert run_of(file_of(made, step))["init"] == file_digest(start)
            assert run_of(file_of(made, step))["options"]["seed"] == 3
    assert file_of(made, None) == home.pretrained


def test_ratatouille_is_the_plain_average_of_all_weights_finetuned_on_the_target(made):
    file = expert_file(made, RATATOUILLE)
    members = [file.parent / f"from-{task}/last.safetensors" for task in OTHERS]
    average = merge.average([tensors(member) for member in members])
    found = tensors(file)
    assert found.keys() == average.keys()
    assert all(torch.equal(found[name], average[name]) for name in average)
    assert not torch.equal(found["encoder.layers.0.fc1.weight"], tensors(members[0])["encoder.layers.0.fc1.weight"])
    recipe = merge.read_recipe(file.with_name("average.safetensors.recipe.json"))
    assert [item.name for item in recipe.inputs] == [f"from-{task}" for task in OTHERS]
    assert load_model(file).config == CONFIGS["pocket"]


def test_fusing_goes_on_from_the_average_of_the_auxiliary_experts(made):
    experts = [tensors(expert_file(made, Expert(task, task, "vanilla"))) for task in OTHERS]
    start = made.folder / "experts/fusing/vqa/average.safetensors"
    assert merge.digest(tensors(start)) == merge.digest(merge.average(experts))
    assert run_of(expert_file(made, FUSING))["init"] == merge.digest(merge.average(experts), "xxh3_128/1")


def test_a_family_of_two_has_one_auxiliary_task_and_nothing_to_average(home):
    ratatouille, fusing = (step_of(home, Expert("a", "video-qa", kind)) for kind in ("ratatouille", "fusing"))
    vanilla = step_of(home, Expert("b", "video-caption", "vanilla"))
    assert ratatouille.parents == fusing.parents == (vanilla,)


def test_joint_finetuning_sees_as_many_examples_as_its_tasks_alone(made):
    full = replace(made, preset="full")
    alone = [step_of(full, Expert(task, task, "vanilla")).options for task in ("vqa", "caption")]
    joint = step_of(full, JOINT)
    assert joint.options.updates * joint.options.batch == sum(one.updates * one.batch for one in alone)
    assert run_of(expert_file(made, JOINT))["data"]["shares"] == {"vqa": 0.5, "caption": 0.5}


def test_rewarded_experts_go_on_from_the_grounding_expert(made):
    run = run_of(expert_file(made, REWARD))
    assert run["init"] == file_digest(expert_file(made, Expert("grounding", "grounding", "vanilla")))
    assert tuple(run["options"]["reward"]["areas"]) == REWARDS["pocket"]["small"].areas


def test_rewards_read_only_the_rows_that_count(made):
    """From the split that finetuning has not seen, where the world has it."""
    step, _ = steps = [step_of(replace(made, preset=preset), REWARD) for preset in ("full", "quick")]
    assert [one.split for one in steps] == ["pretrain", "train"]
    _, files = open_model(made, expert_file(made, REWARD))
    whole = files.data("grounding", "train")
    counted = [row for row in range(len(whole)) if step.options.reward.counts(whole.read(row).reference)]
    some = files.training([("grounding", "train")], 0, step.options.reward)["grounding"]
    assert 0 < len(some) == len(counted) < len(whole)
    assert [some.table.place(row) for row in range(len(some))] == [whole.table.place(row) for row in counted]
    assert some.table[0] == whole.table[counted[0]]
    with pytest.raises(StudyError, match="no box of a size that is rewarded: use a larger world"):
        files.training([("grounding", "train")], 0, RewardOptions(areas=(0.0, 1.0)))


def test_all_rewards_mixed_are_as_long_as_one_and_leave_no_box_out(made):
    one, mixed = (step_of(made, Expert("small", "grounding", kind)) for kind in ("reward", "mixed-rewards"))
    assert mixed.parents == one.parents
    assert mixed.options == replace(one.options, reward=replace(one.options.reward, areas=(0.0, math.inf)))


def test_longer_sees_the_updates_of_two_finetunings(home):
    full = replace(home, preset="full")
    alone = {task: step_of(full, Expert(task, task, "vanilla")).options for task in (*OTHERS, "vqa")}
    longer = step_of(full, Expert("vqa", "vqa", "longer"))
    others = sum(alone[task].updates for task in OTHERS) / 3
    assert longer.options == replace(alone["vqa"], updates=round(alone["vqa"].updates + others))
    assert longer.parents == ()


def test_soups_average_runs_that_only_seeds_tell_apart(home, made):
    soups = [step_of(home.with_seed(seed), Expert("vqa", "vqa", "soup")) for seed in (0, 3)]
    assert soups[1].parents[0] == step_of(made, Expert("vqa", "vqa", "vanilla"))
    assert [one.options.seed for soup in soups for one in soup.parents] == [0, 1000, 2000, 3, 1003, 2003]
    assert len({replace(one.options, seed=0) for one in soups[1].parents}) == 1
    assert [one.options.seed for one in step_of(made, Expert("a", "video-qa", "soup")).parents] == [3, 1003]


def test_the_members_of_a_soup_read_the_data_in_orders_of_their_own(home, made):
    pocket = home.with_seed(5)
    file = make_experts(pocket, [Expert("caption", "caption", "soup")], 1, progress=False)["soup/caption"]
    runs = [run_of(file_of(pocket, step)) for step in step_of(pocket, Expert("caption", "caption", "soup")).parents]
    assert [run["options"]["seed"] for run in runs] == [5, 1005, 2005]
    assert len({run["init"] for run in runs}) == 1
    twin = make_experts(home.with_seed(1005), [CAPTION], 1, progress=False)["vanilla/caption"]
    assert file_digest(twin) == file_digest(file.parent / "seed-1005" / "last.safetensors")


def test_experts_on_the_way_are_kept_by_one_run_that_ends_like_the_vanilla_one(made):
    kinds = ("along-10", "along-60", "along-90")  # of 3 updates: behind the first, second and third
    files = make_experts(made, [Expert("caption", "caption", kind) for kind in kinds], 1, progress=False)
    digests = [file_digest(file) for file in files.values()]
    end = file_digest(expert_file(made, CAPTION))
    assert [file.name for file in files.values()] == [f"part-{number}-of-10.safetensors" for number in (1, 6, 9)]
    assert file_digest(files["along-10/caption"].with_name("last.safetensors")) == end == digests[2]
    assert len(set(digests)) == 3
    files["along-10/caption"].unlink()
    with pytest.raises(StudyError, match=r"part-1-of-10.safetensors is gone: remove .*along/caption"):
        make_experts(made, [Expert("caption", "caption", "along-10")], 1, progress=False)


def test_what_cannot_be_made_is_refused_before_anything_is(home, tmp_path):
    pocket = Pocket(tmp_path / "none", "micro")
    for expert, error, text in (
        (Expert("a", "audio-caption", "fusing"), StudyError, "audio-caption has no auxiliary tasks"),
        (Expert("a", "chess", "vanilla"), UnivalError, "no task 'chess'"),
        (Expert("tiny", "grounding", "reward"), UnivalError, "no reward 'tiny'"),
        (Expert("small", "vqa", "reward"), StudyError, "reward/small: rewards are for boxes"),
    ):
        with pytest.raises(error, match=text):
            make_experts(pocket, [CAPTION, expert], 1, progress=False)
    assert not pocket.folder.exists()


# -- in order


def test_jobs_wait_for_those_they_depend_on():
    needs = {"a": (), "b": (), "average": ("a", "b"), "more": ("average",)}
    order, done, second_is_done = [], [], Event()

    def work(name):
        assert set(needs[name]) <= set(done)
        assert name != "a" or second_is_done.wait(60)
        done.append(name)

    with ThreadPoolExecutor(3) as pool:
        for job in finished(pool, work, [(name,) for name in needs], lambda name: [(one,) for one in needs[name]]):
            order.append(job[0])
            if job == ("b",):
                second_is_done.set()
    assert order == ["b", "a", "average", "more"]


def test_an_error_stops_what_depends_on_it():
    done = []

    def work(name):
        done.append(name)
        raise StudyError(name)

    with ThreadPoolExecutor(2) as pool, pytest.raises(StudyError, match="a"):
        list(finished(pool, work, [("a",), ("b",)], lambda name: [("a",)] if name == "b" else []))
    assert done == ["a"]


# -- once, and the same


def test_a_second_call_makes_nothing(made):
    before = modified(made)
    files = make_experts(made, [RATATOUILLE, FUSING, JOINT, REWARD], 1, progress=False)
    assert modified(made) == before
    assert list(files) == ["ratatouille/vqa", "fusing/vqa", "joint/all", "reward/small"]
    assert make_experts(made, [Expert("W0", "", "pretrained")], 1, progress=False) == {"pretrained": made.pretrained}


def test_killed_in_the_middle_it_goes_on_to_the_same_bits(home, made, tmp_path):
    shutil.copytree(home.folder, tmp_path / "home", ignore=shutil.ignore_patterns("seed-*", "cache"))
    again = replace(home, folder=tmp_path / "home").with_seed(3)
    first, second = (expert_file(again, Expert(task, task, "vanilla")) for task in ("caption", "grounding"))

    def until_killed():
        def save(folder, state, save=RunFolder.save_state):
            save(folder, state)
            if folder.path == second.parent and state["update"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        RunFolder.save_state = save
        make_experts(again, [FUSING], 1, progress=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking a process with threads, none of which holds a lock here
        child = multiprocessing.get_context("fork").Process(target=until_killed)
        child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert second.with_name("state.pt").exists()
    assert first.exists()
    assert not second.exists()
    make_experts(again, [FUSING], 1, progress=False)
    assert file_digest(expert_file(again, FUSING)) == file_digest(expert_file(made, FUSING))


def test_the_cache_gives_the_same_runs_to_another_folder(home, made, tmp_path):
    shutil.copytree(home.folder, tmp_path / "home", ignore=shutil.ignore_patterns("seed-*", "cache"))
    again = replace(home, folder=tmp_path / "home").with_seed(3)
    file = make_experts(again, [CAPTION], 1, progress=False, cache=home.folder / "cache")["vanilla/caption"]
    kept = expert_file(made, CAPTION)
    assert file.read_bytes() == kept.read_bytes()
    assert file.with_name("metrics.csv").read_text() == kept.with_name("metrics.csv").read_text()  # seconds too
    assert not list((home.folder / "cache").glob("*.partial*"))


def test_the_cache_lies_where_users_keep_theirs(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "unival-merge" / "experts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "unival-merge" / "experts"


# -- other weights, other settings


@pytest.fixture
def copied(home, made, tmp_path):
    """A copy of all that was made, to spoil."""
    shutil.copytree(home.folder, tmp_path / "home", ignore=shutil.ignore_patterns("cache"))
    return replace(home, folder=tmp_path / "home").with_seed(3)


def test_experts_of_other_pretrained_weights_are_refused(copied):
    old = file_digest(copied.pretrained)
    model = load_model(copied.pretrained)
    with torch.no_grad():
        model.encoder.layer_norm.bias.add_(1)
    metadata = merge.open_checkpoint(copied.pretrained).metadata
    save_model(model, copied.pretrained, metadata=metadata, overwrite=True)
    before = modified(copied)
    with pytest.raises(StudyError) as error:
        make_experts(copied, [RATATOUILLE], 1, progress=False)
    experts = copied.folder / "experts"
    stale = [f"vanilla/{task}" for task in OTHERS] + [f"ratatouille/vqa/from-{task}" for task in OTHERS]
    told = str(error.value)
    assert told.startswith(f"{experts / 'vanilla/caption'} is another run: init was {old}, is ")
    assert file_digest(copied.pretrained) in told
    assert set(told.split("remove ")[1].split(", ")) == {str(experts / name) for name in stale}
    assert modified(copied) == before


def test_experts_of_another_recipe_are_refused(copied, monkeypatch):
    task = TASKS["caption"]
    monkeypatch.setitem(TASKS, "caption", replace(task, recipes={"pocket": {**task.recipes["pocket"], "lr": 0.5}}))
    with pytest.raises(StudyError, match=r"vanilla/caption is another run: lr was 0.0003, is 0.5; put that back"):
        make_experts(copied, [CAPTION], 1, progress=False)


def test_experts_of_other_files_are_refused(copied):
    record = copied.world / "world.json"
    known = read_world(copied.world).files["caption/train"].sha256
    record.write_text(record.read_text().replace(known, "0" * 64))
    with pytest.raises(StudyError, match=f"vanilla/caption is another run: caption/train was {known}, is 000000"):
        make_experts(copied, [CAPTION], 1, progress=False)


def test_a_run_of_a_parent_that_was_made_anew_is_refused(copied):
    caption = expert_file(copied, CAPTION)
    old, further = file_digest(caption), copied.folder / "experts/ratatouille/vqa/from-caption"
    record = run_of(caption)
    shutil.rmtree(caption.parent)
    make_experts(copied, [CAPTION], 1, progress=False)
    assert (file_digest(caption), run_of(caption)) == (old, record)  # the same weights: nothing is wrong
    make_experts(copied, [RATATOUILLE], 1, progress=False)
    (further / "run.json").write_text(json.dumps(run_of(further / "last.safetensors") | {"init": "another"}))
    shutil.rmtree(caption.parent)
    with pytest.raises(StudyError, match=f"from-caption is another run: init was another, is {old}; put that back"):
        make_experts(copied, [RATATOUILLE], 1, progress=False)


def test_an_average_follows_its_members(copied):
    member = copied.folder / "experts/ratatouille/vqa/from-caption/last.safetensors"
    model = load_model(member)
    with torch.no_grad():
        model.encoder.layer_norm.bias.add_(3)
    save_model(model, member, metadata=merge.open_checkpoint(member).metadata, overwrite=True)
    before = tensors(expert_file(copied, RATATOUILLE))["encoder.layer_norm.bias"].clone()
    file = make_experts(copied, [RATATOUILLE], 1, progress=False)["ratatouille/vqa"]
    torch.testing.assert_close(tensors(file)["encoder.layer_norm.bias"], before + 1)


def test_another_seed_has_a_folder_of_its_own_and_other_weights(home, made):
    other = home.with_seed(4)
    assert (other.world, other.pretrained) == (made.world, made.pretrained)
    file = make_experts(other, [CAPTION], 1, progress=False)["vanilla/caption"]
    assert file == home.folder / "seed-4/experts/vanilla/caption/last.safetensors"
    assert file_digest(file) != file_digest(expert_file(made, CAPTION))
