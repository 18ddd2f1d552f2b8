"""Builds the kernels where there is something to build them with; the package installs and works without.

The C++ kernels become one plain C library, without Python or torch in it: one build fits every version of both. The
CUDA kernels become one file of machine code for all GPUs; without nvcc, NVRTC compiles them at first use instead.
RWKVFUSION_BUILD=cpu builds the first alone, RWKVFUSION_BUILD=none neither.
"""

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

SOURCES = Path("kernels/csrc")
COMMON = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)
SETS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
}
COMMIT = "COMMIT"
CPU_LIBRARY, CUDA_BINARY = "_cpu.so", "biwkv.fatbin"


def compiler() -> list[str] | None:
    """The C++ compiler: $CXX, or the first of the usual ones; None where there is none."""
    wanted = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else [["g++"], ["clang++"], ["c++"]]
    return next((command for command in wanted if shutil.which(command[0])), None)


def build_cpu(target: Path, scratch: Path) -> str | None:
    """Compile and link; the reason where that fails."""
    cxx = compiler()
    if cxx is None:
        return f"no C++ compiler found (install g++ or clang++; CXX is {os.environ.get('CXX') or 'not set'})"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    jobs = [
        (f"{Path(source).stem}_{isa}", source, (f"-DISA={isa}", *flags))
        for isa, flags in SETS.items()
        for source in ("cpu/cpu.cpp", "network/layer.cpp", "network/fusion.cpp", "network/gradients.cpp")
        if x86 or isa == "portable"
    ]
    jobs.append(("dispatch", "cpu/dispatch.cpp", ("-DWITH_X86",) if x86 else ()))
    failure = None
    # Threads need OpenMP, which not every compiler has; one thread is better than none.
    for threads in (("-fopenmp",), ()):
        failure = _compile(cxx, jobs, threads, target, scratch)
        if failure is None:
            break
    return failure


def _compile(cxx: list[str], jobs: list, threads: tuple[str, ...], target: Path, scratch: Path) -> str | None:
    objects, running = [], []
    for name, source, flags in jobs:
        objects.append(str(scratch / f"{name}.o"))
        command = [*cxx, *COMMON, *threads, *flags, "-c", str(SOURCES / source), "-o", objects[-1]]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    output = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        return "".join(output) or f"{cxx[0]} failed without a word"
    linked = subprocess.run([*cxx, "-shared", *threads, *objects, "-o", str(target)], capture_output=True, text=True)
    return (linked.stderr or f"{cxx[0]} did not link") if linked.returncode else None


def build_cuda(target: Path) -> str | None:
    """Compile for all GPUs; the reason where that fails."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "no nvcc found; NVRTC will compile them at first use"
    flags = (SOURCES / "cuda" / "nvcc_flags.txt").read_text().split()
    made = subprocess.run(
        [nvcc, *flags, str(SOURCES / "cuda" / "biwkv.cu"), "-o", str(target)], capture_output=True, text=True
    )
    return made.stdout + made.stderr if made.returncode else None


class BuildKernels(build_ext):
    """Builds what can be built, and says what could not be."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / CPU_LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.get_ext_fullpath(ext.name)).parent
        scratch = Path(self.build_temp)
        for path in (folder, scratch):
            path.mkdir(parents=True, exist_ok=True)
        wanted = os.environ.get("RWKVFUSION_BUILD", "cpu,cuda").split(",")
        if "cpu" in wanted:
            self._report("C++", build_cpu(folder / CPU_LIBRARY, scratch))
        if "cuda" in wanted:
            self._report("CUDA", build_cuda(folder / CUDA_BINARY))

    def _report(self, name: str, failure: str | None) -> None:
        if failure:
            self.warn(f"rwkvfusion: the {name} kernels were not built: {failure}")

    def copy_extensions_to_source(self) -> None:
        """An editable install uses what is beside the sources."""
        package = Path(self.get_finalized_command("build_py").get_package_dir("rwkvfusion.kernels"))
        built = Path(self.build_lib) / "rwkvfusion" / "kernels"
        for name in (CPU_LIBRARY, CUDA_BINARY):
            if (built / name).exists():
                # A library in use must not be written over: its process would crash.
                (package / name).unlink(missing_ok=True)
                shutil.copy2(built / name, package / name)

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "rwkvfusion" / "kernels"
        return [str(path) for name in (CPU_LIBRARY, CUDA_BINARY) if (path := folder / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        package = Path(self.get_finalized_command("build_py").get_package_dir("rwkvfusion.kernels"))
        return {path: str(package / Path(path).name) for path in self.get_outputs()} if self.inplace else {}


def commit() -> str | None:
    """The commit of this checkout, `-dirty` where files differ; of an unpacked sdist, the one it was made of."""
    note = Path("infra") / COMMIT

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "setup.py") is None:
        return note.read_text() if note.exists() else None
    head = git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and git("status", "--porcelain", "--untracked-files=no") else head


class NoteCommit(build_py):
    """Notes beside infra/provenance.py what a wheel is built from; an editable install asks git each time."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode and (found := commit()):
            (Path(self.build_lib) / "rwkvfusion" / "infra" / COMMIT).write_text(found)


class NoteCommitInSource(sdist):
    """The same for a source archive, in which there is no git."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        if found := commit():
            (Path(base_dir) / "infra" / COMMIT).write_text(found)


class AnyPythonWheel(bdist_wheel):
    """The libraries depend on the platform only."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("rwkvfusion.kernels._cpu", [], optional=True)],
    cmdclass={
        "build_ext": BuildKernels,
        "build_py": NoteCommit,
        "sdist": NoteCommitInSource,
        "bdist_wheel": AnyPythonWheel,
    },
)
