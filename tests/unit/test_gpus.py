"""The GPUs that a gateway reads from Triton's metrics."""

from accel_lib.service.routes.status import gpus_in, read_gpus

# As Triton 2.51 writes them; the busy card has the values that were recorded on an H100.
METRICS = """# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="embedding",version="1"} 12
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-9b6f"} 0.96
nv_gpu_utilization{gpu_uuid="GPU-1c2d"} 0
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-9b6f"} 85520809984
nv_gpu_memory_total_bytes{gpu_uuid="GPU-1c2d"} 85520809984
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-9b6f"} 7612661760
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1c2d"} 611319808
# HELP nv_gpu_power_usage GPU power usage in watts
# TYPE nv_gpu_power_usage gauge
nv_gpu_power_usage{gpu_uuid="GPU-9b6f"} 324.151
# HELP nv_gpu_power_limit GPU power management limit in watts
# TYPE nv_gpu_power_limit gauge
nv_gpu_power_limit{gpu_uuid="GPU-9b6f"} 700
# HELP nv_energy_consumption GPU energy consumption in joules since the Triton Server started
# TYPE nv_energy_consumption counter
nv_energy_consumption{gpu_uuid="GPU-9b6f"} 1023.4
"""


def test_each_gpu_has_what_triton_tells_of_it_and_null_for_the_rest():
    idle, busy = gpus_in(METRICS)
    assert (idle.uuid, busy.uuid) == ("GPU-1c2d", "GPU-9b6f")
    assert (busy.utilization, busy.memory_used_bytes, busy.power_w) == (0.96, 7612661760, 324.151)
    assert (idle.utilization, idle.memory_total_bytes, idle.power_w) == (0.0, 85520809984, None)


def test_metrics_without_a_gpu_name_none():
    assert gpus_in('nv_inference_count{model="embedding",version="1"} 3\n') == []


def test_a_triton_that_does_not_answer_has_no_gpus_to_show():
    assert read_gpus("http://127.0.0.1:9/metrics") == []
