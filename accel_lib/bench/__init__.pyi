from .ablation import ablate as ablate
from .batching import compare_batching as compare_batching
from .candidates import AS_THEY_COME as AS_THEY_COME
from .candidates import ONE_BY_ONE as ONE_BY_ONE
from .memory import fit_memory as fit_memory
from .ranking import compare_ranking as compare_ranking
from .roofline import crossover as crossover
from .speedup import speedup_over_eager as speedup_over_eager
