from .check import check_simulator as check_simulator
from .curve import latency_curve as latency_curve
from .curve import predict_settings as predict_settings
