"""vLLM on a CPU, answering bench_peers.py: run by the interpreter that has vllm, and nothing else of this project.

Each line of standard input is a question {"batch", "prompt", "tokens", "seed"}; each answer is a line of file
descriptor 3: {"prefill_s": until the first step with all tokens, "decode_s", "decoded": tokens in decode_s}.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    model, dtype, answers = sys.argv[1], sys.argv[2], os.fdopen(3, "w")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model, dtype=dtype, skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=64,
        max_num_batched_tokens=2048, enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip
    engine, number = llm.llm_engine, 0

    def ask(question: dict[str, int]) -> dict[str, float]:
        nonlocal number
        rng = random.Random(question["seed"])
        sampling = SamplingParams(
            temperature=0.0, max_tokens=question["tokens"], ignore_eos=True, detokenize=False
        )
        began = time.perf_counter()
        for _ in range(question["batch"]):
            number += 1
            ids = [rng.randrange(3, 32000) for _ in range(question["prompt"])]
            engine.add_request(str(number), {"prompt_token_ids": ids}, sampling)
        had: dict[str, int] = {}
        first, at_first = 0.0, 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                had[output.request_id] = len(output.outputs[0].token_ids)
            if not first and len(had) == question["batch"] and min(had.values()) > 0:
                first, at_first = time.perf_counter(), sum(had.values())
        end = time.perf_counter()
        return {
            "prefill_s": first - began, "decode_s": end - first, "decoded": sum(had.values()) - at_first
        }  # fmt: skip

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(ask(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
