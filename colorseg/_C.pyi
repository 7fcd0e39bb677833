torch_built: str
cuda_built: bool
cuda_arch_list: list[str]
cpu_isa: str
available_isas: list[str]
cpu_bfloat16: bool

def measure_peak(isa_name: str, seconds: float) -> float: ...
def set_allow_tf32(allowed: bool) -> None: ...
