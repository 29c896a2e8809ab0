# Numbers that are none: the run stops or skips as it was told, naming the step, the rank and the unit.
import job

# Updates of this size make weights that overflow in the third step.
DIVERGES = ["--set", "optimizer { sgd { learning_rate: 9e5 weight_decay: 1e5 } }", "--set", "lr_schedule.warmup_steps=0", "--set", "lr_schedule.clip_grad_norm=0"]
SKIPS = ["--set", "non_finite.policy=SKIP_UPDATE", "--set", "non_finite.max_consecutive_skips=2"]


class NonFinite(job.JobTest):
    def test_stop(self):
        result = job.train(self.folder, 2, *DIVERGES, "--set", "checkpoint.every_steps=1")
        self.assertCode(result, 7)
        self.assertRegex(result.output, r"step 3: loss \S+, gradient norm nan \(rank 0: gradient of unit head; rank 1: .*\); the last checkpoint, if there is one, stands")
        self.assertEqual(job.steps(self.run_dir), [1, 2], "the bad step is not saved")

    def test_each_stage_names_its_own_unit(self):
        result = job.train(self.folder, 2, *DIVERGES, "--set", "parallel.pipeline=2")
        self.assertCode(result, 7)
        self.assertSays(result, "step 3: loss", "(rank 0: gradient of unit model.layers.0; rank 1: gradient of unit head)", times=1)

    def test_skip_and_give_up(self):
        result = job.train(self.folder, 2, *DIVERGES, *SKIPS)
        self.assertCode(result, 7)
        self.assertSays(result, *[f"step {step}: loss" for step in (3, 4, 5)], "update skipped, 1 in a row", "update skipped, 2 in a row", "2 updates in a row were skipped already", times=1)

    def test_a_skipped_update_leaves_the_weights(self):
        """Saved after steps that were skipped: what the last update left, to the bit."""
        code = job.train(self.folder, 2, *DIVERGES, *SKIPS, "--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep_last=4", "--set", "train_for.steps=4")
        self.assertCode(code, 0)
        good = job.tensor_files(job.checkpoint(self.run_dir, 2))
        self.assertEqual(job.tensor_files(job.checkpoint(self.run_dir, 4)), good)
        self.assertNotEqual(job.tensor_files(job.checkpoint(self.run_dir, 1)), good)


if __name__ == "__main__":
    job.main()
