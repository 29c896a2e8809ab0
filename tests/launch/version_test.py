"""version_test.py BUILD_FOLDER: what cmake/TriremeVersion.cmake writes, and that the program, and what it writes, say it."""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


class Version(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="ver sion ")
        self.addCleanup(self.folder.cleanup)
        self.source = pathlib.Path(self.folder.name, "source")
        self.source.mkdir()
        self.output = pathlib.Path(self.folder.name, "version.cc")

    def written(self):
        subprocess.run(["cmake", f"-DSOURCE={self.source}", "-DVERSION=1.2.3", f"-DOUTPUT={self.output}", "-P", ROOT / "cmake/TriremeVersion.cmake"], check=True)
        return re.search(r'kVersion = "(.*)"', self.output.read_text())[1]

    def commit(self, folder):
        (folder / "file").write_text("one")
        if not (folder / ".git").exists():
            git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "--allow-empty", "-m", "one")
        return git(folder, "rev-parse", "--short=12", "HEAD")

    def test_the_commit_and_whether_it_was_changed(self):
        if not shutil.which("git"):
            self.skipTest("no git here")
        commit = self.commit(self.source)
        git(self.source, "tag", "v9")
        self.assertEqual(self.written(), f"1.2.3 ({commit})")
        (self.source / "file").write_text("two")
        self.assertEqual(self.written(), f"1.2.3 ({commit}+changes)")

    def test_an_archive_of_the_sources_has_none(self):
        self.assertEqual(self.written(), "1.2.3 (built without git)")

    def test_nor_has_an_archive_unpacked_in_another_repository(self):
        if shutil.which("git"):
            self.commit(self.source.parent)
        self.assertEqual(self.written(), "1.2.3 (built without git)")

    def test_written_again_only_when_it_changed(self):
        self.written()
        before = self.output.stat().st_mtime_ns
        self.written()
        self.assertEqual(self.output.stat().st_mtime_ns, before)

    def test_one_file_is_compiled_again(self):
        """Only version.cc mentions the generated file: nothing includes it."""
        uses = [line for line in (BUILD / "build.ninja").read_text().splitlines() if line.startswith("build ") and "generated/version.cc" in line.split("||")[0].split("|")[0]]
        compiled = [line for line in uses if "CXX_COMPILER" in line]
        self.assertEqual(len(compiled), 1, uses)

    def test_the_program_says_it(self):
        said = subprocess.run([BUILD / "bin/trireme", "--version"], check=True, capture_output=True, text=True).stdout
        project = re.search(r"project\(trireme VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
        self.assertRegex(said, rf"^trireme {re.escape(project)} \((built without git|[0-9a-f]{{12}}(\+changes)?)\)\n$")


if __name__ == "__main__":
    unittest.main()
