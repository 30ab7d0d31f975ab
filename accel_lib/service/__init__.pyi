from .gateway import Gateway as Gateway
from .gateway import serve_gateway as serve_gateway
from .settings import Settings as Settings
