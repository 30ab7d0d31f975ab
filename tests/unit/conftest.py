"""Unit tests that `make check` leaves out: what converts, trains, simulates or draws for long."""

SLOW = {
    "test_autoscale",
    "test_build",
    "test_choice",
    "test_convert",
    "test_course",
    "test_deploy",
    "test_engines",
    "test_fp16",
    "test_generate",
    "test_generation_onnx",
    "test_launchers",
    "test_loading",
    "test_memory",
    "test_model_table",
    "test_models",
    "test_more",
    "test_openvino",
    "test_packed",
    "test_packed_families",
    "test_reranker",
    "test_scores",
    "test_sentiment",
    "test_sliders",
    "test_steps",
    "test_tensorrt",
    "test_validate",
    "test_validate_generation",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")
