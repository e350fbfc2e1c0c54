"""Every field of a run, with what it means. An experiment states only its differences.

Each field is an absl flag: --config.objective.name=grpo. A misspelt one fails and
names the nearest. `None` in an optional field is written --config.FIELD=None.
"""

from ml_collections import ConfigDict, config_dict

OPTIONAL = (  # the fields that may be None
  'objective.token_clip', 'objective.clip_low', 'objective.clip_high',
  'objective.aggregation', 'objective.mix_end', 'objective.temperature.end',
  'optimizer.clip_norm')


def _optional(value, kind):
  """Return a field that holds `kind` or None."""
  return config_dict.FieldReference(value, field_type=kind)


def get_config() -> ConfigDict:
  """Return the defaults: the paper's setting where it has one (D.1 to D.3)."""
  config = ConfigDict()
  config.seed = 0  # decides problems, initial weights, samples
  config.num_steps = 100  # iterations: sample, verify, update
  config.init_from = ''  # run folder whose newest policy to start from; '' for none

  # Batch words: B prompts, K responses each; E epochs over minibatches of groups
  config.prompts_per_step = 128  # B
  config.samples_per_prompt = 8  # K
  config.updates_per_step = 2  # minibatches per epoch
  config.epochs = 1  # E
  config.micro_prompts = 0  # groups whose gradient is taken at once; 0: the minibatch
  config.micro_responses = 0  # their responses at once; 0: all K (else two passes)
  config.pack = 1  # times as many groups at once where responses are short; 1: padded

  # What is learned from may be older than the policy, see lpo_jax/replay.py
  config.async_rollouts = 0  # 1: sampled and judged while the step before updates
  config.replay = ConfigDict()
  config.replay.fraction = 0.0  # of a batch's groups that are past ones
  config.replay.capacity = 0  # groups that are kept; 0: all of max_age iterations
  config.replay.max_age = 4  # iterations
  config.replay.min_ess = 0.5  # least effective sample size, as a share of K

  config.task = ConfigDict()
  config.task.name = 'countdown'  # a task of lpo_jax/tasks
  config.task.options = ConfigDict()  # its keyword arguments
  config.task.workers = 0  # processes that judge, where that is costly; 0: one a core
  config.task.deadline_s = 30.0  # of one verdict there; then 0 and a new process
  config.task.sandbox = 'bubblewrap'  # of tasks that run programs; rlimits: no walls
  config.task.reward = ConfigDict()  # weights of its parts, see lpo_jax/rewards.py
  config.task.reward.correct = 1.0  # the verdict
  config.task.reward.format = 0.0  # an answer in the form that is asked for
  config.task.reward.length = 0.0  # not too long
  config.task.reward.full_length = 0.5  # share of max_new_tokens that earns all of it

  config.policy = ConfigDict()
  config.policy.name = 'countdown_small'  # a preset of configs/models.py
  config.policy.path = ''  # Hugging Face folder or hub id, instead of the preset
  config.policy.tokenizer = ''  # folder, hub id or 'countdown'; '': path's, or the last
  config.policy.prompt_style = 'auto'  # auto, plain or chat, see lpo_jax/tokenizer.py
  config.policy.dtype = 'float32'  # activations and matmuls
  config.policy.param_dtype = 'float32'  # weights; bfloat16: rounded stochastically
  config.policy.cache_dtype = 'same'  # bfloat16 or int8: a smaller cache for sampling
  config.policy.unroll_layers = 8  # up to so many run unrolled: faster, more to compile
  config.policy.attention = 'auto'  # auto, xla, cudnn or pallas: of whole responses
  config.policy.remat = 'none'  # none, dots or full: what the backward pass recomputes
  config.policy.lora = ConfigDict()  # low-rank adapters: all that is trained, then
  config.policy.lora.rank = 0  # 0: none, every parameter is trained
  config.policy.lora.alpha = 32.0  # what they add is scaled by alpha / rank
  config.policy.lora.targets = (
    'query', 'key', 'value', 'out', 'gate', 'up', 'down')  # matrices that have one

  config.policy.vision = ConfigDict()  # of policies that read images
  config.policy.vision.frozen = True  # the tower is not trained, but by the warm start
  config.policy.vision.min_pixels = 0  # of an image, resized; 0: what `path` states
  config.policy.vision.max_pixels = 0

  config.mesh = ConfigDict()
  config.mesh.shape = (1, 1, 1)  # devices along each axis
  config.mesh.axes = ('data', 'fsdp', 'tensor')
  config.mesh.sampling_shape = ()  # while sampling; (): the same, or a CPU's cores
  config.mesh.sampling_devices = 'same'  # or others, that do not train: async_rollouts
  config.mesh.sequence_sharding = False  # split long activations over tensor, too

  config.warmstart = ConfigDict()
  config.warmstart.steps = 0  # supervised steps on demonstrations before step 0
  config.warmstart.batch = 128  # demonstrations a step
  config.warmstart.learning_rate = 1.5e-3
  config.warmstart.warmup_steps = 100
  config.warmstart.b2 = 0.98
  config.warmstart.weight_decay = 0.01
  config.warmstart.clip_norm = 1.0

  config.sampling = ConfigDict()
  config.sampling.temperature = 1.0  # of pi_b, and so of pi: both sides
  config.sampling.max_new_tokens = 1024  # N; longer responses are cut
  config.sampling.prompt_buckets = (64, 128, 256, 512, 1024)  # allowed widths P
  config.sampling.patch_buckets = (256, 1024, 4096)  # patches of a prompt's images
  config.sampling.prompts_at_once = 0  # prompts decoded at once; 0: all of the step's
  config.sampling.parked = 0.0  # room for rows that wait for others, in full loads
  config.sampling.chunk = 128  # tokens after which others take finished rows' place
  config.sampling.top_k = 0  # 0 keeps every token
  config.sampling.top_p = 1.0  # 1 keeps every token
  config.sampling.allow_truncated = False  # train although top_k or top_p cut pi_b
  config.sampling.copy_weights = True  # cast and gather once a batch, not once a token
  config.sampling.unroll = True  # unroll layers in decode (faster; copies the weights)

  config.objective = ConfigDict()
  config.objective.name = 'lpo_fwd'  # see lpo_jax/objective.py
  config.objective.score = 'mean'  # listwise score: mean or sum of token log-ratios
  config.objective.token_clip = _optional(0.2, float)  # None: the pure projection
  config.objective.skip_flat_groups = False  # leave out groups of equal rewards
  config.objective.alpha = 0.5  # of lpo_alpha
  config.objective.mix = 0.0  # of lpo_mix: share of reverse KL, the rest forward KL
  config.objective.mix_end = _optional(None, float)  # the share after schedule_steps
  config.objective.schedule = 'linear'  # or cosine: how mix and temperature get there
  config.objective.schedule_steps = 0  # iterations
  config.objective.clip_low = _optional(None, float)  # None: the method's own
  config.objective.clip_high = _optional(None, float)
  config.objective.aggregation = _optional(None, str)  # of tokens; None: the method's
  config.objective.behavior = 'learner'  # who says log pi_b: learner again, or sampler
  config.objective.logprob_chunk = 0  # positions whose logits exist at once; 0: all
  config.objective.temperature = ConfigDict()
  config.objective.temperature.rule = 'group_std'  # tau, see simplex/temperature.py
  config.objective.temperature.value = 1.0  # tau, its multiplier, or the KL or ESS
  config.objective.temperature.end = _optional(None, float)  # after schedule_steps
  config.objective.entropy_bonus = 0.0  # gamma of the target, see lpo_jax/tilt.py
  config.objective.entropy_of = 'simplex'  # or policy: whose entropy earns it

  config.step_level = ConfigDict()  # local simplices, see lpo_jax/step_level.py
  config.step_level.fraction = 0.0  # share of a step's groups that are local
  config.step_level.prefix = 0  # most tokens of a shared prefix; 0: max_new_tokens / 2

  config.offline = ConfigDict()  # fixed lists instead of sampled groups
  config.offline.path = ''  # JSON lines, see lpo_jax/offline.py; '': sample
  config.offline.rewards = 'unit'  # unit, scale, sigmoid or rank: to rewards in [0, 1]

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 1e-6
  config.optimizer.warmup_steps = 0  # updates
  config.optimizer.schedule = 'constant'  # constant, cosine or linear
  config.optimizer.decay_steps = 0  # updates; of cosine and linear
  config.optimizer.final_fraction = 0.1  # of learning_rate after the decay
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.moment_dtype = 'float32'  # or bfloat16, rounded stochastically
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip_norm = _optional(1.0, float)  # None: no clipping
  config.optimizer.vision_multiplier = 1.0  # of the rate, where a tower is trained
  config.optimizer.max_skipped_steps = 10  # non-finite updates in a row before stopping

  config.eval = ConfigDict()
  config.eval.every = 20  # steps; also before the first and after the last
  config.eval.problems = 256  # of each set, from its top
  config.eval.samples = 16  # n: responses to each; a set's own n counts before it
  config.eval.final_samples = 64  # the same, before the first step and after the last
  config.eval.temperature = 1.0  # a set's own counts before it
  config.eval.shuffle_images = False  # each problem has another's images: NAME_shuffled
  config.eval.pass_at = (1, 2, 4, 8, 16, 32, 64)  # k of pass@k, up to the samples

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 20  # steps
  config.checkpoint.keep = 2  # newest kept, beside the best
  config.checkpoint.best_metric = ''  # also keep the best by this val/ metric

  config.log = ConfigDict()
  config.log.groups_every = 20  # steps between looks inside: rollouts/ and certificate
  config.log.groups = 8  # groups written at each look
  config.log.tensorboard = True
  config.log.watchdog_s = 600.0  # name the phase that lasts longer
  return config
