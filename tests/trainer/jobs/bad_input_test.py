# Wrong configurations, damaged corpora and checkpoints, a full disk: each a clear message, its exit code, and nothing half-written.
import gzip
import os
import pathlib
import shutil
import subprocess

import job


class BadConfig(job.JobTest):
    def refused(self, code, *parts, recipe=job.RECIPE, ranks=2, arguments=()):
        (self.folder / "bad.textproto").write_text(recipe)
        result = job.train(self.folder, ranks, *arguments, recipe="bad.textproto")
        self.assertCode(result, code)
        self.assertSays(result, *parts, times=1)
        self.assertFalse(self.run_dir.exists(), "nothing should have been started")
        return result

    def test_unknown_field(self):
        recipe = job.RECIPE.replace("micro_batch_size", "  micro_batchsize")
        self.refused(job.CONFIG, "bad.textproto:5:", "micro_batchsize", "did you mean", recipe=recipe)

    def test_several_unknown_fields_are_all_reported(self):
        recipe = job.RECIPE.replace("global_batch_size", "global_batch").replace("num_hidden_layers", "num_layers")
        self.refused(job.CONFIG, "bad.textproto:4:", "bad.textproto:2:", recipe=recipe)

    def test_wrong_type(self):
        self.refused(job.CONFIG, "bad.textproto:4:", recipe=job.RECIPE.replace("global_batch_size: 8", 'global_batch_size: "eight"'))

    def test_unknown_override(self):
        self.refused(job.CONFIG, "optimizer.adamw.learning_rat", "did you mean", arguments=["--set", "optimizer.adamw.learning_rat=1"])

    def test_missing_file(self):
        result = job.train(self.folder, 2, recipe="nowhere.textproto")
        self.assertCode(result, job.CONFIG)
        self.assertSays(result, "nowhere.textproto", times=1)

    def test_heads_that_do_not_divide(self):
        self.refused(job.CONFIG, "model.num_attention_heads: 5 does not divide hidden_size 64", arguments=["--set", "model.num_attention_heads=5"])

    def test_mesh_of_another_size(self):
        self.refused(job.CONFIG, "parallel: data_shard 4", "but the job has 2", "mpirun -np 4", arguments=["--set", "parallel.data_shard=4"])

    def test_batch_that_does_not_divide(self):
        self.refused(job.CONFIG, "global_batch_size: 6 is not a multiple of micro_batch_size 2 x 2 data-parallel ranks = 4", arguments=["--set", "global_batch_size=6"])

    def test_every_problem_is_reported_at_once(self):
        self.refused(job.CONFIG, "the config has 4 problems", "model.num_attention_heads", "model.num_key_value_heads", "lr_schedule.warmup_steps", "global_batch_size",
                     arguments=["--set", "model.num_attention_heads=5", "--set", "lr_schedule.warmup_steps=-1", "--set", "global_batch_size=7"])

    def test_one_of_n(self):
        for ranks in (0, 1):
            result = self.refused(job.WORLD_SIZE, "expects 2 ranks but was started with 1", "mpirun -np 2", ranks=ranks, arguments=["--ranks", "2"])
            self.assertLess(result.seconds, 10)

    def test_a_verb_of_one_process_under_mpirun(self):
        for command in (["export", "run", "--output", "of-many"], ["validate", "tiny.textproto"]):
            result = job.run(self.folder, "mpirun", "--quiet", "--oversubscribe", "-np", "3", job.TRIREME, *command)
            self.assertCode(result, job.CONFIG)
            self.assertSays(result, f"{command[0]}: runs as one process, but mpirun started 3 of it", times=1)

    def test_expected_ranks(self):
        for ranks in (0, 1):
            self.refused(job.WORLD_SIZE, "expected_ranks", "mpirun -np 2", ranks=ranks, arguments=["--set", "launch.expected_ranks=2"])


class BadCorpus(job.JobTest):
    def setUp(self):
        super().setUp()
        self.bad = self.folder / "bad"
        shutil.rmtree(self.bad, ignore_errors=True)
        shutil.copytree(self.folder / "corpus", self.bad)

    def refused(self, *parts, arguments=(), started=False):
        result = job.train(self.folder, 2, "--set", 'data { source { path: "bad" } }', *arguments)
        self.assertCode(result, job.DATA)
        self.assertSays(result, *parts)
        self.assertEqual(result.output.count("error"), 1, result.output)
        self.assertEqual(self.run_dir.exists(), started)
        return result

    def test_missing(self):
        shutil.rmtree(self.bad)
        self.refused("open corpus bad: it does not exist", "trireme prepare")

    def test_truncated_bin(self):
        path = self.bad / "train-00000.bin"
        os.truncate(path, path.stat().st_size - 100)
        self.refused("bad/train-00000.bin", str(path.stat().st_size))

    def test_idx_of_another_bin(self):
        shutil.copy(self.bad / "validation-00000.idx", self.bad / "train-00000.idx")
        self.refused("bad/train-00000.idx", "bad/train-00000.bin", "it is not the .bin of this index")

    def test_shard_of_another_manifest(self):
        for kind in ("idx", "bin"):
            shutil.copy(self.bad / f"validation-00000.{kind}", self.bad / f"train-00000.{kind}")
        self.refused("bad/train-00000", "manifest")

    def test_garbled_idx(self):
        (self.bad / "train-00000.idx").write_bytes(b"not an index")
        self.refused("bad/train-00000.idx")

    def test_corrupt_manifest(self):
        path = self.bad / "manifest.textproto"
        path.write_text(path.read_text()[:200] + " ???")
        self.refused("bad/manifest.textproto")

    def test_tokenizer_of_another_corpus(self):
        path = self.bad / "tokenizer.json"
        path.write_text(path.read_text() + " ")
        self.refused("bad/tokenizer.json")

    def test_changed_bytes_with_verification(self):
        path = self.bad / "train-00000.bin"
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        path.write_bytes(data)
        self.refused("bad/train-00000.bin", arguments=["--set", "data.verify_checksums=true"])

    def test_token_beyond_the_vocabulary(self):
        path = self.bad / "train-00000.bin"
        data = bytearray(path.read_bytes())
        for at in range(200, len(data) - 200, 4000):
            data[at : at + 2] = (5000).to_bytes(2, "little")
        path.write_bytes(data)
        self.refused("bad/train-00000.bin", "5000", "384", started=True)
        self.assertEqual(sum(1 for _ in (self.run_dir / "checkpoints").glob("*.tmp-*")), 0)

    def test_broken_gzip(self):
        text = self.folder / "broken.txt.gz"
        packed = gzip.compress(pathlib.Path(job.TEXT, "GPL-3").read_bytes())
        for damaged in (packed[: len(packed) // 2], packed[:500] + b"\0" * 200 + packed[700:]):
            text.write_bytes(damaged)
            result = job.run(self.folder, job.TRIREME, "prepare", text.name, "--tokenizer", "tokenizer.json", "--output", "from-gzip")
            self.assertCode(result, job.DATA)
            self.assertSays(result, "broken.txt.gz")
            self.assertEqual(list(self.folder.glob("from-gzip*")), [], "half a corpus is left")


class BadCheckpoint(job.JobTest):
    def setUp(self):
        super().setUp()
        result = job.train(self.folder, 2, "--stop-at", "10")
        self.assertCode(result, job.PREEMPTED)
        self.assertEqual(job.steps(self.run_dir), [6, 8, 10])

    def damage(self, step, how):
        folder = job.checkpoint(self.run_dir, step)
        path = sorted(folder.glob("weights/*.safetensors"))[0]
        if how == "flipped":
            data = bytearray(path.read_bytes())
            data[-5] ^= 0x10
            path.write_bytes(data)
        elif how == "truncated":
            os.truncate(path, path.stat().st_size - 1)
        elif how == "removed":
            path.unlink()
        elif how == "manifest":
            os.truncate(folder / "manifest.pb", 50)
        return folder.name + ("/manifest.pb" if how == "manifest" else "")

    def test_falls_back_to_an_older_one(self):
        self.damage(10, "flipped")
        self.damage(8, "truncated")
        result = job.train(self.folder, 2)
        self.assertCode(result, 0)
        self.assertSays(result, "has another content than when it was saved", "bytes, the manifest says", "resumed from run/checkpoints/step-00000006", times=1)
        self.assertEqual(result.output.count("trying an older one"), 2)
        self.assertSameEnd(self.run_dir, self.uninterrupted())

    def test_missing_file_and_torn_manifest(self):
        self.damage(10, "removed")
        self.damage(8, "manifest")
        result = job.train(self.folder, 2, "--stop-at", "11")
        self.assertCode(result, job.PREEMPTED)
        self.assertSays(result, " is missing", "manifest.pb is damaged", "resumed from run/checkpoints/step-00000006", times=1)

    def test_a_flipped_bit_in_the_manifest(self):
        # The samples passed so far: another number would be as good as any.
        path = job.checkpoint(self.run_dir, 10) / "manifest.pb"
        data = bytearray(path.read_bytes())
        at = data.index(bytes([0x08, 10, 0x10, 80]))
        data[at + 3] ^= 1
        path.write_bytes(data)
        result = job.train(self.folder, 2)
        self.assertCode(result, 0)
        self.assertSays(result, "step-00000010: manifest.pb is damaged", "resumed from run/checkpoints/step-00000008", times=1)
        self.assertSameEnd(self.run_dir, self.uninterrupted())

    def test_a_manifest_of_an_older_version(self):
        # Without what this version adds: its digest, what the data say about text, and the count of updates.
        path = job.checkpoint(self.run_dir, 10) / "manifest.pb"
        data = path.read_bytes()
        self.assertEqual(data[-34:-32], bytes([0x7A, 32]))
        data = data[: data.rindex(bytes([0x70, 1, 0xA2, 1]))]
        begin = data.index(bytes([0x12]), 2)
        progress = data[begin + 2 : begin + 2 + data[begin + 1]]
        self.assertEqual(progress[-2:], bytes([0x40, 10]))
        path.write_bytes(data[:begin] + bytes([0x12, len(progress) - 2]) + progress[:-2] + data[begin + 2 + len(progress) :])
        result = job.train(self.folder, 2)
        self.assertCode(result, 0)
        self.assertSays(result, "resumed from run/checkpoints/step-00000010", times=1)
        self.assertSameEnd(self.run_dir, self.uninterrupted())

    def test_a_copy_is_no_checkpoint(self):
        shutil.copytree(job.checkpoint(self.run_dir, 8), self.run_dir / "checkpoints" / "step-00000008-copy")
        shutil.copytree(job.checkpoint(self.run_dir, 8), self.run_dir / "checkpoints" / "step-000000011")
        shutil.copytree(job.checkpoint(self.run_dir, 8), self.run_dir / "checkpoints" / "step-00000099")  # its manifest knows better
        result = job.train(self.folder, 2, "--stop-at", "12")
        self.assertCode(result, job.PREEMPTED)
        self.assertSays(result, "resumed from run/checkpoints/step-00000010", times=1)
        exported = job.run(self.folder, job.TRIREME, "export", "run", "--output", "of-the-newest")
        self.assertCode(exported, 0)
        self.assertSays(exported, "exported checkpoint run/checkpoints/step-00000012 to", times=1)
        self.assertEqual([step for step in job.steps(self.run_dir) if step != 99][-1], 12)

    def test_only_what_the_manifest_names_is_read(self):
        for part in ("weights", "optimizer"):
            folder = job.checkpoint(self.run_dir, 10) / part
            shutil.copy(sorted(folder.glob("*.safetensors"))[0], folder / "left-over.safetensors")
        result = job.train(self.folder, 2)
        self.assertCode(result, 0)
        self.assertSays(result, "resumed from run/checkpoints/step-00000010", times=1)
        self.assertSameEnd(self.run_dir, self.uninterrupted())

    def test_none_is_whole(self):
        for step in (6, 8, 10):
            self.damage(step, "flipped")
        result = job.train(self.folder, 2)
        self.assertCode(result, job.CHECKPOINT)
        self.assertSays(result, "none of the 3 checkpoints", "repair one, or remove them", times=1)
        self.assertEqual(job.steps(self.run_dir), [6, 8, 10])

    def test_changed_config(self):
        result = job.train(self.folder, 2, "--set", "optimizer.adamw.learning_rate=1e-3")
        self.assertCode(result, job.CHECKPOINT)
        self.assertSays(result, "optimizer.adamw.learning_rate", "0.003", "0.001", "--allow-change", times=1)
        self.assertEqual(job.steps(self.run_dir), [6, 8, 10])
        # What does not alter numbers may change.
        result = job.train(self.folder, 2, "--set", "logging.every_steps=2", "--set", "micro_batch_size=1", "--stop-at", "11")
        self.assertCode(result, job.PREEMPTED)
        result = job.train(self.folder, 2, "--set", "optimizer.adamw.learning_rate=1e-3", "--allow-change", "--stop-at", "12")
        self.assertCode(result, job.PREEMPTED)
        self.assertSays(result, "resuming although the config changed", times=1)
        self.assertAlmostEqual(job.metrics(self.run_dir)[12]["learning_rate"] / job.metrics(self.uninterrupted())[12]["learning_rate"], 1 / 3)

    def test_other_corpus(self):
        made = job.run(self.folder, job.TRIREME, "prepare", job.TEXT, "--tokenizer", "tokenizer.json", "--output", "other", "--validation-fraction", "0.5")
        self.assertCode(made, 0)
        result = job.train(self.folder, 2, "--set", 'data { source { path: "other" } }')
        self.assertCode(result, job.CHECKPOINT)
        self.assertSays(result, "data.source", "content differs", times=1)

    def test_never_and_required(self):
        result = job.train(self.folder, 2, "--set", "resume=NEVER")
        self.assertCode(result, job.CHECKPOINT)
        self.assertSays(result, "resume: NEVER", "step-00000010", times=1)
        result = job.train(self.folder, 2, "--set", "resume=REQUIRED", "--set", 'run_dir="empty"')
        self.assertCode(result, job.CHECKPOINT)
        self.assertSays(result, "resume: REQUIRED", "holds no checkpoint", times=1)
        result = job.train(self.folder, 2, "--set", "resume=REQUIRED", "--stop-at", "11")
        self.assertCode(result, job.PREEMPTED)


class FullDisk(job.JobTest):
    def test_the_earlier_checkpoint_stays_resumable(self):
        self.run_dir.mkdir()
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(self.run_dir)], capture_output=True, text=True)
        if mount.returncode != 0:
            self.skipTest(f"cannot mount a small tmpfs: {mount.stderr.strip()}")
        try:
            result = job.train(self.folder, 2, "--set", "checkpoint.keep_last=0")
            self.assertCode(result, job.STORAGE)
            self.assertSays(result, "No space left on device", times=1)
            self.assertSays(result, "saving step")
            saved = job.steps(self.run_dir)
            self.assertGreaterEqual(len(saved), 2)
            self.assertEqual(list((self.run_dir / "checkpoints").glob("*.tmp-*")), [], "half a checkpoint is left")
            subprocess.run(["mount", "-o", "remount,size=200m", str(self.run_dir)], check=True)
            result = job.train(self.folder, 2)
            self.assertCode(result, 0)
            self.assertSays(result, f"resumed from run/checkpoints/step-{saved[-1]:08d}", times=1)
            self.assertSameEnd(self.run_dir, self.uninterrupted())
        finally:
            subprocess.run(["umount", str(self.run_dir)], check=True)


if __name__ == "__main__":
    job.main()
