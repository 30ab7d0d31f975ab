from .abtest.trial import Trial as Trial
from .abtest.trial import run_trial as run_trial
from .gateway import Gateway as Gateway
from .gateway import serve_gateway as serve_gateway
from .settings import Settings as Settings
from .waterfall import read_vectors as read_vectors
