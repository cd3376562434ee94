"""Re-generation inside TRL: what is sampled, what stays in the text, what leaves the loss and its divisor, and what is refused."""

from dataclasses import replace

import pytest
import torch
from trl import GRPOTrainer

from isentrope.control.cuts import Branches
from isentrope.control.papers.aepo_arbitrary import AepoArbitrary
from isentrope.control.papers.cure import Cure
from isentrope.control.papers.weighted_grpo import WeightedGrpo
from isentrope.control.placebo import placebo
from isentrope.control.standard import DynamicSampling
from isentrope.control.step import ORIGINS
from isentrope.errors import UserError
from isentrope.measure.tokens import Entropy, token_signals_from_logits
from isentrope.tape import Tape, TapeWriter
from isentrope.train.recorder import TapeRecorder
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer
from isentrope.train.trl_test import CASES, Listener, options, run

CURE = Cure(n1=2, n2=1, top_k=1, characters=1)  # groups of 4: drafts 0, 1 and their branches 2, 3
BRANCH = ORIGINS.index("branch")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


class Seen(Listener):
    """Keeps every generation, and what the link was shown and answered."""

    signals = ()

    def __init__(self):
        super().__init__()
        self.generations, self.figures = [], []

    def generation(self, trainer, prompts, rollouts):
        self.generations.append(rollouts)
        self.figures.append(dict(trainer.regeneration.figures))


class Spy(Cure):
    """Remembers what it was shown."""

    shown = []

    def branches(self, drafts, state, rng):
        found = super().branches(drafts, state, rng)
        Spy.shown.append((drafts, found))
        return found


def spied(model_path, tmp_path, link=CURE, **changes):
    Spy.shown.clear()
    seen = Seen()
    trainer, *_ = run(IsentropeTrainer, model_path, options(tmp_path, **changes), control=[Spy(**link.__dict__)], recorder=seen)
    return trainer, seen, list(Spy.shown)


def test_a_branch_is_its_parent_up_to_the_most_uncertain_token_and_something_of_its_own(model_path, tmp_path):
    _, seen, shown = spied(model_path, tmp_path)
    cuts = []
    for rollouts, (drafts, _) in zip(seen.generations, shown, strict=True):
        ids, text, trained = rollouts.completion_ids, rollouts.completion_mask, rollouts.trained_mask
        assert torch.equal(rollouts.row_id.view(-1, 4)[:, :2].flatten(), drafts.rollouts.row_id)
        assert torch.equal(rollouts.group.view(-1, 4)[:, :2].flatten(), drafts.rollouts.group)
        entropy, admitted = drafts.rollouts.signal("draft.entropy"), drafts.rollouts.completion_ids > 1  # neither <pad> nor <eos>
        admitted &= drafts.rollouts.completion_ids != 41  # the blank
        admitted[:, 0] = False
        for row in range(len(ids)):
            cut, parent, draft = int((text[row] & ~trained[row]).sum()), row - 2, row // 4 * 2 + row % 4 - 2
            assert int(text[row].sum()) <= 8
            if row % 4 < 2:
                assert cut == 0
                assert torch.equal(ids[row][text[row]], drafts.rollouts.completion_ids[row // 4 * 2 + row % 4][: int(text[row].sum())])
                continue
            assert torch.equal(ids[row, :cut], ids[parent, :cut])
            assert not trained[row, :cut].any()
            assert torch.equal(trained[row, cut:], text[row, cut:])
            assert int(trained[row].sum()) > 0
            assert (rollouts.origin[row] == BRANCH) == (cut > 0)
            choice = torch.where(admitted[draft], entropy[draft], -1.0)
            assert cut == (int(choice.argmax()) if admitted[draft].any() else 0)
            cuts.append(cut)
    assert len(set(cuts) - {0}) > 2


def test_the_reward_and_the_length_are_of_the_whole_response(model_path, tmp_path):
    trainer, seen, _ = spied(model_path, tmp_path, max_steps=1)
    (rollouts,) = seen.generations
    whole = [ids[mask] for ids, mask in zip(rollouts.completion_ids, rollouts.completion_mask, strict=True)]
    texts = trainer.processing_class.batch_decode(whole, skip_special_tokens=True)
    assert list(rollouts.text) == texts
    assert rollouts.reward.tolist() == pytest.approx(share_of_vowels(texts))
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "completions/mean_length" in entry]
    assert lengths == [pytest.approx(float(rollouts.completion_mask.sum(-1).float().mean()))]
    assert bool((rollouts.completion_mask & ~rollouts.trained_mask).any())


def test_entropies_at_the_drafts_are_those_of_a_stock_forward_at_the_temperature(model_path, tmp_path):
    trainer, seen, shown = spied(model_path, tmp_path, max_steps=1, learning_rate=0.0, temperature=0.7)
    drafts, rollouts = shown[0][0], seen.generations[0]
    for batch in trainer._buffered_inputs:
        ids, mask = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        with torch.no_grad():
            logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -batch["completion_ids"].shape[1] - 1 : -1].double() / 0.7
        stock = token_signals_from_logits(logits, batch["completion_ids"], [Entropy()])["entropy"]
        for at, row in enumerate(batch["isentrope/row_id"].tolist()):
            found = (drafts.rollouts.row_id == row).nonzero()
            if len(found):
                text = drafts.rollouts.completion_mask[found[0, 0]]
                ours = drafts.rollouts.signal("draft.entropy")[found[0, 0]][text]
                torch.testing.assert_close(ours.double(), stock[at, : len(ours)], rtol=0, atol=2e-6)
    assert len(rollouts) == 8


@pytest.mark.parametrize("case", CASES)
def test_every_loss_divides_as_trl_divides_where_tokens_are_not_the_policys(case, model_path, tmp_path):
    """Our loss of a batch with branches is that of stock TRL given the same mask as its own `tool_mask`."""
    found = []

    class Both(IsentropeTrainer):
        def _compute_loss(self, model, inputs):
            ours = super()._compute_loss(model, inputs)
            kept = {key: value for key, value in inputs.items() if not key.startswith("isentrope/")}
            tool = inputs.get("isentrope/trained", inputs["completion_mask"].bool()).int()
            losses = [ours, GRPOTrainer._compute_loss(self, model, kept | {"tool_mask": tool}), GRPOTrainer._compute_loss(self, model, kept)]
            weights = list(model.parameters())
            slopes = [torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, retain_graph=True)]) for loss in losses]
            found.append(([float(loss) for loss in losses], slopes))
            return ours

    args = {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "beta": 0.1, "max_steps": 2} | CASES[case]
    run(Both, model_path, options(tmp_path, **args), control=[CURE])
    for (ours, theirs, _), slopes in found:
        assert ours == pytest.approx(theirs, abs=2e-6)
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)
    apart = [float((theirs - unmasked).norm() / theirs.norm()) for _, (_, theirs, unmasked) in found]
    assert max(apart) > 0.05  # the mask matters, so equality shows something


def test_the_divisor_of_the_generation_counts_what_is_trained(model_path, tmp_path):
    trainer, seen, _ = spied(model_path, tmp_path, max_steps=1, loss_type="dapo")
    total = {int(batch["num_items_in_batch"]) for batch in trainer._buffered_inputs}
    assert total == {int(seen.generations[0].trained_mask.sum())}
    assert total != {int(seen.generations[0].completion_mask.sum())}


def test_stage_two_is_plain(model_path, tmp_path):
    _, seen, shown = spied(model_path, tmp_path, replace(CURE, until=2), max_steps=4)
    assert [bool((rollouts.origin == BRANCH).any()) for rollouts in seen.generations] == [True, True, False, False]
    assert len(shown) == 2
    assert seen.figures[2:] == [{"share": 0.0}] * 2
    assert all(torch.equal(rollouts.trained_mask, rollouts.completion_mask) for rollouts in seen.generations[2:])


def test_neutral_samples_and_trains_as_the_empty_chain_does(model_path, tmp_path):
    plain = run(IsentropeTrainer, model_path, options(tmp_path / "plain"))
    off = run(IsentropeTrainer, model_path, options(tmp_path / "off"), control=[CURE.neutral()])
    assert off[1] == pytest.approx(plain[1], abs=1e-6)  # another head, hence not to the bit
    for ours, theirs in zip(off[3], plain[3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_groups_that_are_filled_up_are_cut_like_the_others(model_path, tmp_path):
    """DAPO's filter beside CURE, as in the paper: a dropped group is sampled again with drafts and branches of its own."""
    seen = Seen()
    links = [CURE, DynamicSampling(rounds=3, spread=0.2)]
    trainer, *_ = run(IsentropeTrainer, model_path, options(tmp_path, max_steps=4), control=links, recorder=seen)
    kept = []
    for rollouts in seen.generations:
        fresh = (rollouts.row_id >= 1 << 40).view(-1, 4)
        assert (fresh == fresh[:, :1]).all()  # whole groups
        for group in fresh[:, 0].nonzero().flatten().tolist():
            for row in range(4 * group, 4 * group + 4):
                ids, text, own = rollouts.completion_ids[row], rollouts.completion_mask[row], rollouts.trained_mask[row]
                cut = int((text & ~own).sum())
                assert cut == 0 or row % 4 >= 2
                assert torch.equal(ids[:cut], rollouts.completion_ids[row - 2][:cut])
                kept.append(cut)
    assert sum(cut > 0 for cut in kept) > 2
    logged = [entry for entry in trainer.state.log_history if "isentrope/extra_tokens" in entry]
    assert logged


def test_figures_recount_the_generation(model_path, tmp_path):
    _, seen, shown = spied(model_path, tmp_path)
    for rollouts, figures, (drafts, found) in zip(seen.generations, seen.figures, shown, strict=True):
        early, late = rollouts.take(torch.arange(8).view(2, 4)[:, :2].flatten()), rollouts.take(torch.arange(8).view(2, 4)[:, 2:].flatten())
        assert figures["first_tokens"] == figures["scored_tokens"] == float(early.completion_mask.sum())
        assert figures["second_tokens"] == float(late.trained_mask.sum())
        assert figures["kept_tokens"] == float((late.completion_mask & ~late.trained_mask).sum()) == float(found.cut.sum())
        assert figures["share"] == float((rollouts.origin == BRANCH).float().mean())
        entropy, real = drafts.rollouts.signal("draft.entropy"), found.cut > 0
        assert figures["entropy"] == pytest.approx(float(entropy[found.parent[real], found.cut[real]].mean()))
        assert figures["usual_entropy"] == pytest.approx(float(entropy[drafts.rollouts.trained_mask].mean()))
        assert figures["entropy"] > figures["usual_entropy"]  # the one most uncertain of each
        lengths = drafts.rollouts.lengths.tolist()
        near = [entropy[row, at : min(at + 4, lengths[row])].mean() for row, at in zip(found.parent[real].tolist(), found.cut[real].tolist(), strict=True)]
        assert figures["near_entropy"] == pytest.approx(float(torch.stack(near).mean()))


def test_the_tape_tells_them(model_path, tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    recorder = TapeRecorder(writer, tokens_every=None)
    trainer, *_ = run(IsentropeTrainer, model_path, options(tmp_path / "out", max_steps=2), control=[CURE], recorder=recorder)
    writer.flush(2)
    steps = Tape.read(tmp_path).steps
    assert steps["touch/cure"].to_list() == steps["cut/cure/share"].to_list()
    assert 0 < steps["cut/cure/share"][0] <= 0.5
    assert (steps["cut/cure/entropy"] > steps["cut/cure/usual_entropy"]).all()
    assert (steps["cut/cure/first_tokens"] + steps["cut/cure/second_tokens"] + steps["cut/cure/kept_tokens"]).to_list() == steps["tokens"].to_list()
    logged = [entry for entry in trainer.state.log_history if "isentrope/regenerate/second_tokens" in entry]
    assert [entry["isentrope/regenerate/second_tokens"] for entry in logged] == steps["cut/cure/second_tokens"].to_list()


@pytest.mark.parametrize("link", [replace(CURE, top_k=3), placebo(CURE)])
def test_resume_from_any_step_equals_the_straight_run(link, model_path, tmp_path):
    """One generation feeds four updates, so steps 1 to 3 lie between two of them."""
    args = {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1, "max_steps": 6, "save_strategy": "steps", "save_steps": 1}

    def trainer(folder):
        return IsentropeTrainer(
            model=model_path, reward_funcs=share_of_vowels, args=options(folder, **args), train_dataset=toy_prompts(), control=[link], recorder=Seen()
        )

    straight = trainer(tmp_path / "run")
    straight.train()
    for stop in (1, 5):
        resumed = trainer(tmp_path / "again" / str(stop))
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
        for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
            assert torch.equal(ours, theirs), f"resumed from {stop}"
        for ours, theirs in zip(resumed.recorder.generations, straight.recorder.generations[-len(resumed.recorder.generations) :], strict=False):
            assert torch.equal(ours.completion_ids, theirs.completion_ids)
            assert torch.equal(ours.trained_mask, theirs.trained_mask)


# --- what is refused


def refused(model_path, tmp_path, control, **changes) -> str:
    with pytest.raises(UserError) as refusal:
        IsentropeTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path, **changes), train_dataset=toy_prompts(), control=control)
    return str(refusal.value)


def test_another_number_of_responses_is_refused_with_both_numbers(model_path, tmp_path):
    assert refused(model_path, tmp_path, ["cure"]) == ("cure: n1 + n1 n2 = 4 + 12 = 16 responses form a group, and num_generations is 4. Set both alike.")


def test_engines_without_a_hook_are_refused_by_name(model_path, tmp_path):
    assert "cure samples the responses of a group in two calls, which vLLM gives no hook for" in refused(
        model_path, tmp_path, [CURE], use_vllm=True, vllm_importance_sampling_correction=False
    )
    assert "which continuous batching gives no hook for" in refused(model_path, tmp_path, [CURE], use_transformers_continuous_batching=True)


@pytest.mark.parametrize("link", [AepoArbitrary(), DynamicSampling(), WeightedGrpo(pairs=8)])
def test_what_samples_beside_the_batch_is_refused_with_vllm(link, model_path, tmp_path):
    words = refused(model_path, tmp_path, [link], use_vllm=True, vllm_importance_sampling_correction=False)
    assert words.startswith(f"{link.name} samples beside the batch through transformers' generate, which a run with vLLM has not.")


def test_temperatures_per_token_are_refused_by_name(model_path, tmp_path):
    assert "cure and hapo both change how responses are sampled" in refused(model_path, tmp_path, [CURE, "hapo"])


def test_a_group_on_two_processes_is_refused_with_the_numbers(model_path, tmp_path):
    from isentrope.control.stages import chain
    from isentrope.train.carried import refuse_options

    args = options(tmp_path)
    args.per_device_train_batch_size = 2  # as where two processes share a group
    with pytest.raises(UserError, match="num_generations=4 does not divide the 2 rows of each"):
        refuse_options(args, chain(CURE))


def test_a_loop_of_turns_is_refused(model_path, tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with pytest.raises(UserError, match="cure cuts responses of one turn, and a rollout function or a game samples turns of its own"):
        IsentropeTrainer(
            model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path), train_dataset=toy_prompts(), control=[CURE],
            rollout_func=lambda prompts, trainer: {},
        )  # fmt: skip


class Wrong(Cure):
    """Cuts where there is nothing to cut."""

    def branches(self, drafts, state, rng):
        found = super().branches(drafts, state, rng)
        return Branches(found.parent, found.cut + 50, found.allowed)


def test_a_link_that_cuts_outside_a_draft_is_named(model_path, tmp_path):
    with pytest.raises(ValueError, match=r"cure: the stage regenerate must name 4 branches, 2 for each group"):
        run(IsentropeTrainer, model_path, options(tmp_path), control=[Wrong(**CURE.__dict__)])
