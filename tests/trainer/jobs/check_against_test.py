# `trireme train --check-against`: the same run on another layout passes; another run, or a damaged gradient, is named by step and parameter.
import json
import shutil

import job

CHECK_FAILED = 11
# Few: AdamW makes of the round-off in tiny gradients differences that grow from step to step.
STEPS = ["--set", "train_for.steps=4", "--set", "checkpoint.every_steps=100", "--set", "logging.every_steps=1", "--set", "resume=NEVER"]
REFERENCE = "recorded"


class ChecksAgainst(job.JobTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        recorded = job.train(cls.folder, 0, *STEPS, "--set", "logging.parameter_norms=true", "--set", f'run_dir="{REFERENCE}"')
        assert recorded.code == 0, recorded.output

    def check(self, ranks, *arguments, against=REFERENCE):
        return job.train(self.folder, ranks, *STEPS, "--check-against", against, *arguments)

    def damaged(self, step, matches, factor, recorded=REFERENCE):
        """A copy of the recorded run in which some gradients of a step were of another size."""
        folder = self.folder / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        lines, changed = [], 0
        for line in (self.folder / recorded / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["type"] == "gradient_norms" and record["step"] == step:
                for name in record["norms"]:
                    if matches(name):
                        record["norms"][name] *= factor
                        changed += 1
            lines.append(json.dumps(record))
        self.assertGreater(changed, 0)
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return folder.name

    def test_other_layouts_are_the_same_run(self):
        for ranks, layout in (
            (0, ""),
            (2, "tensor: 2"),
            (4, "tensor: 2 pipeline: 2"),
            (2, "context: 2"),
            (4, "shard: PARAMETERS"),
        ):
            with self.subTest(ranks=ranks, layout=layout):
                self.setUp()
                result = self.check(ranks, "--set", f"parallel {{ {layout} }}")
                self.assertCode(result, 0)
                self.assertSays(result, f"the same as {REFERENCE} in 4 steps", times=1)

    def test_experts(self):
        mixture = "recorded_mixture"
        recorded = job.train(self.folder, 2, *STEPS, *job.MIXTURE, "--set", "parallel { expert: 2 }", "--set", "logging.parameter_norms=true", "--set", f'run_dir="{mixture}"')
        self.assertCode(recorded, 0)
        for ranks, layout in ((0, ""), (4, "expert: 4 tensor: 2 shard: PARAMETERS"), (4, "pipeline: 2 expert: 2 shard: NONE")):
            with self.subTest(ranks=ranks, layout=layout):
                self.setUp()
                result = self.check(ranks, *job.MIXTURE, "--set", f"parallel {{ {layout} }}", against=mixture)
                self.assertCode(result, 0)
                self.assertSays(result, f"the same as {mixture} in 4 steps", times=1)
        against = self.damaged(3, lambda name: ".experts." in name, 0.5, recorded=mixture)
        self.setUp()
        result = self.check(4, *job.MIXTURE, "--set", "parallel { expert: 4 tensor: 2 }", against=against)
        self.assertCode(result, CHECK_FAILED)
        self.assertSays(result, f"step 3 differs from {against}", "first: model.layers.0.mlp.experts.", "likely: axis expert: only experts differ", times=1)

    def test_another_seed_differs_at_once(self):
        for ranks in (0, 2):
            with self.subTest(ranks=ranks):
                self.setUp()
                result = self.check(ranks, "--set", "seed=7")
                self.assertCode(result, CHECK_FAILED)
                self.assertSays(result, f"step 1 differs from {REFERENCE}", "first: model.embed_tokens.weight: gradient norm", "parameters differ by more than", times=1)

    def test_norms_not_summed_over_tensor_ranks(self):
        against = self.damaged(3, lambda name: "norm" in name, 0.6)
        result = self.check(2, "--set", "parallel { tensor: 2 }", against=against)
        self.assertCode(result, CHECK_FAILED)
        self.assertSays(
            result,
            f"step 3 differs from {against}",
            "first: model.layers.0.input_layernorm.weight: gradient norm",
            "5 of 21 parameters differ",
            "likely: axis tensor: only norms differ, whose gradients are summed over tensor ranks",
            times=1,
        )

    def test_every_gradient_scaled_by_the_number_of_data_ranks(self):
        against = self.damaged(2, lambda name: True, 2)
        result = self.check(2, against=against)
        self.assertCode(result, CHECK_FAILED)
        self.assertSays(result, f"step 2 differs from {against}", "likely: axis data_shard: every gradient is off by the same factor 0.5", times=1)

    def test_the_tolerance_is_the_users(self):
        against = self.damaged(2, lambda name: "norm" in name, 1.01)
        self.assertCode(self.check(0, against=against), CHECK_FAILED)
        self.setUp()
        self.assertCode(self.check(0, "--check-tolerance", "0.02", against=against), 0)

    def test_runs_that_cannot_serve(self):
        for against, says in (("nowhere", "nowhere/metrics.jsonl cannot be read"), ("plain", "run it again with --set logging.parameter_norms=true")):
            with self.subTest(against=against):
                self.setUp()
                if against == "plain":
                    self.assertCode(job.train(self.folder, 0, *STEPS, "--set", 'run_dir="plain"'), 0)
                result = self.check(2, against=against)
                self.assertCode(result, job.CONFIG)
                self.assertSays(result, says, times=1)

    def test_another_model(self):
        result = self.check(0, "--set", "model.num_hidden_layers=3")
        self.assertCode(result, CHECK_FAILED)
        self.assertSays(result, f"step 1: {REFERENCE} is a run of another model", "; model.layers.2.input_layernorm.weight is not among them", times=1)


if __name__ == "__main__":
    job.main()
