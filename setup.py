"""Package lpo_jax: Listwise Policy Optimization in JAX."""

import setuptools

setuptools.setup(
  name='lpo_jax',
  version='0.1.0',
  description='Listwise Policy Optimization (arXiv:2605.06139) in JAX',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['lpo_jax', 'lpo_jax.*']),
  package_data={'lpo_jax': ['*.model'], 'lpo_jax.tasks': ['*.model']},
  install_requires=[
    'absl-py',
    'chex',
    'flax>=0.12',
    'huggingface_hub',
    'jax>=0.10,<0.13',
    'jinja2',  # chat templates
    'matplotlib',
    'ml_collections',
    'numpy',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.12',
    'pillow',
    'safetensors>=0.5',  # bfloat16 as NumPy slices
    'sentencepiece',
    'tensorboardX',
    'tqdm',
    'transformers>=4.51',
  ],
  extras_require={
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda12]'],
    'data': ['array_record', 'pyarrow', 'tensorflow-datasets'],
    'code': ['math-verify'],
    'notebooks': ['ipykernel', 'jupyter', 'nbclient', 'nbformat'],
    # torch is the parity tests' oracle; pinned, so that a local CPU build is taken.
    'test': ['ipykernel', 'math-verify', 'nbclient', 'nbformat', 'pyarrow', 'pytest',
             'pytest-xdist', 'ruff', 'torch==2.13.0'],
  },
)
