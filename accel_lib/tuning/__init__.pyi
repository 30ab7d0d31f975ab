from .autoscale import Hpa as Hpa
from .autoscale import burst_load as burst_load
from .autoscale import compare_policies as compare_policies
from .autoscale import daily_load as daily_load
from .autoscale import replay as replay
from .grid import sweep as sweep
from .replica import simulate_replica as simulate_replica
from .step_response import step_test as step_test
