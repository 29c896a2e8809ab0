"""Calls the binary of tests/models/formats/gguf_tool.cc. Used by gguf_oracle.py."""

import os
import subprocess

import numpy as np


class Tool:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder

    def __call__(self, *arguments):
        result = subprocess.run([self.binary, *arguments], capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"gguf_tool {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def path(self, name):
        return os.path.join(self.folder, name)

    def decode(self, file):
        self("decode", file, self.path("decoded.f32"))
        return np.fromfile(self.path("decoded.f32"), np.float32)

    def encode(self, kind, values):
        values.astype(np.float32).tofile(self.path("values.f32"))
        self("encode", kind, self.path("values.f32"), self.path("encoded"))
        return np.fromfile(self.path("encoded"), np.uint8)
