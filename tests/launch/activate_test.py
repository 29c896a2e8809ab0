"""activate_test.py BUILD_FOLDER: `. launch/activate` in every shell that is here, from any folder, in a checkout whose path has a space."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
SHELLS = [shell for shell in (["bash"], ["bash", "--posix"], ["dash"], ["zsh", "-f"], ["busybox", "sh"]) if shutil.which(shell[0])]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "TRIREME_"))}


class Activate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="acti vate ")
        cls.checkout = pathlib.Path(cls.folder.name, "tri reme").resolve()
        (cls.checkout / "launch").mkdir(parents=True)
        shutil.copy(ROOT / "launch/activate", cls.checkout / "launch")
        (cls.checkout / "build").symlink_to(BUILD)
        cls.path = f"{cls.checkout}/build/bin"

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_in(self, shell, script, folder=None, **environment):
        return subprocess.run([*shell, "-c", script], cwd=folder or self.checkout, env=dict(CLEAN, **environment), stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def test_program_and_mpirun_work_from_another_folder(self):
        for shell in SHELLS:
            with self.subTest(shell=shell):
                ran = self.run_in(shell, ". launch/activate && cd / && trireme --version && mpirun --oversubscribe --bind-to none -np 2 trireme --version")
                self.assertEqual(ran.returncode, 0, ran.stderr)
                self.assertEqual(ran.stdout.count("trireme "), 3, ran.stdout)

    def test_found_from_another_folder_where_the_shell_can_tell(self):
        for shell in SHELLS:
            with self.subTest(shell=shell):
                told = {} if shell[0] in ("bash", "zsh") else {"TRIREME_ROOT": str(self.checkout)}
                ran = self.run_in(shell, f". '{self.checkout}/launch/activate'; pwd; command -v trireme", folder="/", **told)
                self.assertEqual(ran.stdout, f"/\n{self.path}/trireme\n", ran.stderr)

    def test_a_shell_that_cannot_tell_says_what_to_do(self):
        for shell in SHELLS:
            if shell[0] in ("bash", "zsh"):
                continue
            with self.subTest(shell=shell):
                ran = self.run_in(shell, f". '{self.checkout}/launch/activate'; echo \"$PATH\"", folder="/")
                self.assertIn("TRIREME_ROOT", ran.stderr)
                self.assertEqual(ran.stdout.strip(), CLEAN["PATH"])

    def test_path_holds_it_once_and_the_last_activated_first(self):
        for shell in SHELLS:
            with self.subTest(shell=shell):
                ran = self.run_in(shell, '. launch/activate; PATH=/other/build/bin:$PATH; . launch/activate; echo "$PATH"')
                self.assertEqual(ran.stdout.strip(), f"{self.path}:/other/build/bin:{CLEAN['PATH']}")

    def test_nothing_but_the_environment_changes(self):
        names = "set | sed -n 's/^\\([A-Za-z_][A-Za-z_0-9]*\\)[= ].*/\\1/p' | sort -u"
        for shell in SHELLS:
            with self.subTest(shell=shell):
                before = set(self.run_in(shell, names).stdout.split())
                after = set(self.run_in(shell, f"set -eu; . launch/activate; set +eu; pwd >&2; {names}").stdout.split())
                allowed = {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_odls_base_sigkill_timeout", "OMPI_MCA_btl_vader_single_copy_mechanism"}
                # What shells keep of the last command themselves.
                self.assertEqual(after - before - allowed - {"BASH_ARGC", "BASH_ARGV", "BASH_LINENO", "BASH_SOURCE", "PIPESTATUS", "_"}, set())

    def test_only_root_is_allowed_to_run_as_root(self):
        ran = self.run_in(["bash"], 'id() { echo 1000; }; . launch/activate; echo "[${OMPI_ALLOW_RUN_AS_ROOT-}]"; unset -f id')
        self.assertEqual(ran.stdout.strip(), "[]")
        ran = self.run_in(["bash"], 'id() { echo 0; }; . launch/activate; echo "[${OMPI_ALLOW_RUN_AS_ROOT-}]"; unset -f id')
        self.assertEqual(ran.stdout.strip(), "[1]")

    def test_settings_of_the_user_stay(self):
        ran = self.run_in(["bash"], '. launch/activate; echo "$OMPI_MCA_odls_base_sigkill_timeout"', OMPI_MCA_odls_base_sigkill_timeout="1")
        self.assertEqual(ran.stdout.strip(), "1")

    def test_interactive_bash_completes(self):
        ran = self.run_in(["bash", "--norc", "-i"], ". launch/activate; complete -p trireme")
        self.assertIn("complete -F _trireme trireme", ran.stdout, ran.stderr)

    @unittest.skipUnless(shutil.which("zsh"), "no zsh here")
    def test_interactive_zsh_completes(self):
        ran = self.run_in(["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -u -D; . launch/activate; print -r -- ${_comps[trireme]}")
        self.assertEqual(ran.stdout.strip().split("\n")[-1], "_trireme", ran.stderr)

    def test_without_a_build_it_says_so(self):
        ran = self.run_in(["bash"], ". launch/activate", TRIREME_BUILD="no-build")
        self.assertIn("launch/build.sh", ran.stderr)


if __name__ == "__main__":
    unittest.main()
