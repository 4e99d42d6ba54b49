"""The judgement: forecast, allocators, guard and placement, on numpy alone."""
