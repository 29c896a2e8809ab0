# Another language and its decimal comma change nothing: neither what is read from the command line and recipes nor what is written, not even when
# a program that calls Main(), as outside projects do, took the user's locale before.
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import job

TAKES_LOCALE = '#include <locale.h>\n__attribute__((constructor)) static void take(void) { setlocale(LC_ALL, ""); }\n'
DEFINITIONS = pathlib.Path("/usr/share/i18n/locales")


class Locales(job.JobTest):
    @classmethod
    def setUpClass(cls):
        if not shutil.which("localedef") or not shutil.which("cc") or not (DEFINITIONS / "tr_TR").exists():
            raise unittest.SkipTest("no C compiler or no definitions of locales here (on Debian: locales)")
        super().setUpClass()
        cls.locales = pathlib.Path(tempfile.mkdtemp(prefix="trireme-locales-"))
        cls.addClassCleanup(shutil.rmtree, cls.locales, ignore_errors=True)
        for name in ("tr_TR", "de_DE"):
            # Exit code 1: warnings of the definition.
            subprocess.run(["localedef", "-i", name, "-f", "UTF-8", cls.locales / f"{name}.UTF-8"], capture_output=True)
            assert (cls.locales / f"{name}.UTF-8").is_dir(), name
        cls.takes_locale = cls.locales / "takes_locale.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", cls.takes_locale], input=TAKES_LOCALE, text=True, check=True)

    def written(self, language):
        environment = dict(LOCPATH=str(self.locales), LANG=language, LC_ALL=language)
        folder = self.folder / language
        folder.mkdir()
        comma = job.run(folder, "python3", "-c", "import locale; locale.setlocale(locale.LC_ALL, ''); print(locale.str(1.5))", env=environment)
        self.assertSays(comma, "1.5" if language.startswith("C") else "1,5")
        shutil.copy(self.folder / "tiny.textproto", folder)
        for command in (
            ["tokenizer", "train", job.TEXT, "--vocab-size", "384", "--output", "tokenizer.json"],
            ["prepare", job.TEXT, "--tokenizer", "tokenizer.json", "--output", "corpus", "--validation-fraction", "0.25"],
            ["train", "tiny.textproto", "--set", "optimizer.adamw.learning_rate=0.0125", "--set", "train_for.steps=2"],
            ["export", "run", "--format", "GGUF", "--output", "model.gguf"],
            ["export", "run", "--output", "hf"],
            ["generate", "run", "--prompt", "THIS IS", "--temperature", "0.7", "--top-p", "0.95", "--max-tokens", "8", "--seed", "3", "--ignore-eos"],
        ):
            result = job.run(folder, job.TRIREME, *command, env=dict(environment, LD_PRELOAD=str(self.takes_locale)))
            self.assertCode(result, 0)
        names = ["tokenizer.json", "model.gguf", *(f"hf/{file.name}" for file in (folder / "hf").iterdir())]
        return {name: (folder / name).read_bytes() for name in names}, job.metrics(folder / "run")

    def test_every_file_is_the_same(self):
        expected = self.written("C.UTF-8")
        for language in ("tr_TR.UTF-8", "de_DE.UTF-8"):
            with self.subTest(language):
                self.assertEqual(self.written(language), expected)


if __name__ == "__main__":
    job.main()
