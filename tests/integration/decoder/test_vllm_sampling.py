"""Our sampling inside vLLM: the processors of its two model runners, on batches made by hand."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fsr.decoder.engines.base import Generation
from fsr.decoder.sampling import Sampling
from fsr.decoder.token_choice import RowOptions, choose_tokens
from fsr_core.backbones import Prompt
from helpers.replicas import ENGINE

pytestmark = [
    pytest.mark.skipif(ENGINE != "vllm", reason="needs vllm"),
    pytest.mark.filterwarnings("ignore"),  # of vllm's imports
]
VOCABULARY, SLOTS, LENGTH = 60, 8, 64


@pytest.fixture(scope="module")
def ours():
    return importlib.import_module("fsr.decoder.engines.vllm.sampling")


class Request:
    """A request that both runners serve: prompt, the tokens of an earlier replica, and what is generated here."""

    def __init__(self, number):
        noise = torch.Generator().manual_seed(number)
        self.prompt = torch.randint(VOCABULARY, (5 + number,), generator=noise).tolist()
        self.emitted = tuple(range(number % 4))
        self.output = []
        self.sampling = Sampling(
            max_tokens=40,
            temperature=(0.0, 0.8, 2.0)[number % 3],
            top_p=(1.0, 0.9)[number % 2],
            top_k=(0, 20)[number // 2 % 2],
            repetition_penalty=(1.0, 1.6)[number % 2],
            seed=number,
            stop=("a",),
        )

    @property
    def tokens(self):
        return [*self.prompt, *self.emitted, *self.output]

    def params(self, ours):
        embeds = torch.zeros(len(self.prompt), 2)
        prompt = Prompt(
            inputs_embeds=embeds,
            token_ids=torch.tensor(self.prompt),
            visual_mask=torch.zeros(len(self.prompt), dtype=torch.bool),
            position_ids=None,
        )
        generation = Generation(request_id="x", prompt=prompt, sampling=self.sampling, emitted=self.emitted)
        return SimpleNamespace(extra_args=ours.extra_args(generation))

    def choice(self, logits, drafts=()):
        """What the decoder's own function chooses after these drafts."""
        step = len(self.emitted) + len(self.output) + len(drafts)
        seen = torch.tensor([[*self.tokens, *drafts]])
        return int(choose_tokens(logits.unsqueeze(0), RowOptions.of([self.sampling], [step]), seen))


class SecondRunner:
    """What vLLM's second model runner keeps, for its processor."""

    def __init__(self, ours):
        interface = importlib.import_module("vllm.v1.worker.gpu.sample.logits_processor")
        self._context = interface.LogitsContext
        self._tokens = torch.zeros(SLOTS, LENGTH, dtype=torch.int32)
        states = interface.LogitsProcRequestState(
            device=torch.device("cpu"),
            max_num_reqs=SLOTS,
            vocab_size=VOCABULARY,
            all_token_ids=SimpleNamespace(gpu=self._tokens),
            prompt_len=None,
            prefill_len=None,
            total_len=None,
        )
        self._ours, self.processor = ours, ours.SecondRunnerProcessor(None, states)

    def add(self, slot, request):
        self._tokens[slot] = 7  # of the request before
        return self.processor.add_request(slot, request.params(self._ours))

    def apply(self, logits, batch, drafts=None):
        """`batch` has slots and requests in the order of the rows; `drafts` the drafts of each request."""
        drafts = drafts or [()] * len(batch)
        slots, local, fed, positions = [], [], [], []
        for (slot, request), of_request in zip(batch, drafts, strict=True):
            tokens = request.tokens
            self._tokens[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
            for at in range(len(of_request) + 1):
                slots.append(slot)
                local.append(at)
                fed.append(of_request[at - 1] if at else tokens[-1])
                positions.append(len(tokens) - 1 + at)
        mapping = np.array([slot for slot, _ in batch], dtype=np.int32)
        context = self._context(
            expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
            idx_mapping=torch.from_numpy(mapping),
            idx_mapping_np=mapping,
            expanded_local_pos=torch.tensor(local, dtype=torch.int32),
            input_ids=torch.tensor(fed, dtype=torch.int32),
            pos=torch.tensor(positions),
            seq_lens_upper_bound_np=np.array([len(r.tokens) + len(d) for (_, r), d in zip(batch, drafts, strict=True)]),
        )
        return self.processor.apply(logits, context)


class FirstRunner:
    """What vLLM's first model runner tells its processor."""

    def __init__(self, ours):
        interface = importlib.import_module("vllm.v1.sample.logits_processor")
        self._update, self._swap = interface.BatchUpdate, interface.MoveDirectionality.SWAP
        self._ours, self.processor = ours, ours.FirstRunnerProcessor(None, torch.device("cpu"), False)

    def update(self, removed=(), added=(), swapped=()):
        self.processor.update_state(
            self._update(
                batch_size=SLOTS,
                removed=list(removed),
                added=[(row, r.params(self._ours), [*r.prompt, *r.emitted], r.output) for row, r in added],
                moved=[(first, second, self._swap) for first, second in swapped],
            )
        )


def test_both_runners_when_rows_move_and_slots_are_reused_choose_the_same(ours):
    torch.manual_seed(0)
    first, second = FirstRunner(ours), SecondRunner(ours)
    rows = [Request(number) for number in range(6)]
    slots = dict(zip(rows, (5, 0, 3, 7, 1, 2), strict=True))
    first.update(added=list(enumerate(rows)))
    for request, slot in slots.items():
        assert second.add(slot, request) == (not request.sampling.is_argmax)
    for step in range(12):
        if step == 4:  # the first runner swaps two rows
            first.update(swapped=[(0, 3)])
            rows[0], rows[3] = rows[3], rows[0]
        if step == 8:  # two requests end, and others take their places
            for row, number in ((1, 12), (2, 13)):
                slot = slots.pop(rows[row])
                rows[row] = Request(number)
                slots[rows[row]] = slot
                second.add(slot, rows[row])
            first.update(removed=[1, 2], added=[(1, rows[1]), (2, rows[2])])
        logits = torch.randn(len(rows), VOCABULARY) * 2
        expected = [request.choice(logits[row]) for row, request in enumerate(rows)]
        order = torch.randperm(len(rows)).tolist()
        by_first = first.processor.apply(logits.clone())
        by_second = second.apply(logits[order], [(slots[rows[row]], rows[row]) for row in order])
        assert by_first.argmax(-1).tolist() == expected
        assert by_second.argmax(-1).tolist() == [expected[row] for row in order]
        for row, request in enumerate(rows):
            if request.sampling.is_argmax:  # vLLM decodes it, from logits that nobody touched
                assert torch.equal(by_first[row], logits[row])
                assert torch.equal(by_second[order.index(row)], logits[row])
            request.output.append(expected[row])


def test_several_rows_of_a_request_when_drafts_are_verified_choose_as_one_after_the_other(ours):
    torch.manual_seed(1)
    second, requests = SecondRunner(ours), [Request(number) for number in (1, 2, 0, 3, 5)]
    batch = [(slot, request) for slot, request in enumerate(requests)]
    for slot, request in batch:
        request.output.extend([slot, 9])
        second.add(slot, request)
    drafts = [(4, 5, 6), (), (1,), (2, 2), (8,)]
    expected, logits = [], []
    for request, of_request in zip(requests, drafts, strict=True):
        for count in range(len(of_request) + 1):
            logits.append(torch.randn(VOCABULARY))
            expected.append(request.choice(logits[-1], of_request[:count]))
    assert second.apply(torch.stack(logits), batch, drafts).argmax(-1).tolist() == expected


def test_a_batch_when_it_is_greedy_stays_as_it_is(ours):
    second, request = SecondRunner(ours), Request(0)
    second.add(3, request)
    logits = torch.randn(1, VOCABULARY)
    assert second.apply(logits, [(3, request)]) is logits


def test_each_runner_takes_its_own_processor_and_refuses_the_other(ours):
    params = importlib.import_module("vllm").SamplingParams(extra_args=Request(1).params(ours).extra_args)
    first = importlib.import_module("vllm.v1.sample.logits_processor").validate_logits_processors_parameters
    second = importlib.import_module("vllm.v1.worker.gpu.sample.logits_processor")
    for_first, for_second = [ours.processor_for(second_runner=False)], [ours.processor_for(second_runner=True)]
    first(for_first, params)
    second.build_custom_logits_processors_params_validator(for_second)(params)
    with pytest.raises(ValueError, match="subclass"):
        first(for_second, params)
    with pytest.raises(ValueError, match="not a subclass"):
        second.build_custom_logits_processors_params_validator(for_first)
