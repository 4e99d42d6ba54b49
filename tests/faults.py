"""The faults that a host can show, by number (the project's list of interfaces has 55), and the test that names each.

Of those that concern this package's hardware layer, loop and journal; the others belong to models, sockets, metrics and
services, which have lists of their own.
"""

from __future__ import annotations

TESTS: dict[int, tuple[str, ...]] = {
    1: ("unit/test_linux_resctrl.py::test_a_vm_that_is_gone_gives_its_ways_back",
        "integration/test_linux_cgroup1.py::test_a_vm_that_vanishes_is_absent_and_its_writes_fail_as_gone"),
    2: ("unit/test_linux_resctrl.py::test_new_threads_follow_and_reused_numbers_do_not",),
    3: ("unit/test_linux_resctrl.py::test_new_threads_follow_and_reused_numbers_do_not",),
    4: ("unit/test_linux_cgroups.py::test_only_positive_thread_ids_leave_the_parser",),
    5: ("unit/test_linux_resctrl.py::test_new_threads_follow_and_reused_numbers_do_not",
        "unit/test_linux_cgroups.py::test_threads_born_during_a_scan_are_found"),
    6: ("unit/test_linux_resctrl.py::test_an_unknown_error_comes_with_the_kernels_words",),
    7: ("unit/test_linux_resctrl.py::test_a_domain_that_comes_back_gets_its_masks_in_the_same_tick",),
    8: ("unit/test_linux_resctrl.py::test_foreign_resets_are_mended",),
    9: ("unit/test_linux_resctrl.py::test_more_vms_than_classes_share_them",
        "lab/test_lab_resctrl_soak.py::test_sixteen_vms_and_everything_that_can_happen"),
    10: ("unit/test_linux_resctrl.py::test_without_monitoring_ids_it_runs_unmonitored",),
    11: ("unit/test_linux_resctrl.py::test_an_umount_is_given_up_and_a_mount_taken_again",
         "lab/test_lab_resctrl_soak.py::test_sixteen_vms_and_everything_that_can_happen"),
    12: ("unit/test_linux_resctrl.py::test_what_is_missing_is_said",),
    13: ("unit/test_linux_resctrl.py::test_foreign_resets_are_mended",
         "unit/test_linux_resctrl.py::test_a_vm_whose_class_is_removed_while_it_moves_is_not_lost"),
    14: ("unit/test_linux_resctrl.py::test_the_lock_of_other_tools_is_waited_for_and_then_given_up",
         "unit/test_loop.py::test_a_write_that_finds_a_lock_held_is_deferred_not_failed"),
    17: ("unit/test_linux_resctrl.py::test_counters_become_rates_and_whatever_is_no_number_is_missing",
         "lab/test_lab_resctrl.py::test_monitoring_counts_and_ages"),
    18: ("unit/test_linux_resctrl.py::test_counters_become_rates_and_whatever_is_no_number_is_missing",),
    19: ("unit/test_linux_resctrl.py::test_counters_become_rates_and_whatever_is_no_number_is_missing",),
    20: ("unit/test_linux_resctrl.py::test_a_domain_that_comes_back_gets_its_masks_in_the_same_tick",
         "unit/test_resctrl_bandwidth.py::test_a_domain_that_goes_offline_leaves_its_share_to_the_others",
         "lab/test_lab_resctrl_soak.py::test_sixteen_vms_and_everything_that_can_happen"),
    21: ("unit/test_linux_resctrl.py::test_a_domain_that_comes_back_gets_its_masks_in_the_same_tick",
         "lab/test_lab_resctrl_soak.py::test_sixteen_vms_and_everything_that_can_happen"),
    23: ("lab/test_lab_cgroup2.py::test_an_isolated_vm_has_a_partition_and_what_reads_invalid_is_none",),
    24: ("integration/test_linux_cgroup1.py::test_a_refused_shrink_stops_the_plan_and_other_refusals_do_not",
         "integration/test_linux_cgroup1.py::test_nested_cpusets_follow_in_an_order_that_the_kernel_accepts"),
    25: ("integration/test_linux_run.py::test_somebody_elses_writes_are_found_and_mended",
         "unit/test_loop.py::test_drift_is_found_within_a_round_and_rewritten"),
    26: ("unit/test_linux_cgroups.py::test_hybrid_mounts_are_told_apart",
         "unit/test_linux_hal_files.py::test_without_a_cpuset_controller_affinity_is_taken"),
    27: ("integration/test_linux_libvirt.py::test_a_hanging_libvirtd_costs_nobody_a_tick",
         "unit/test_discovery.py::test_an_agent_that_misbehaves_is_tried_again_later_and_later"),
    28: ("integration/test_linux_libvirt.py::test_a_libvirtd_that_is_restarted_is_asked_again",),
    29: ("unit/test_linux_resctrl.py::test_names_hold_nothing_of_what_a_user_wrote",
         "unit/test_linux_cgroups.py::test_hostile_paths_are_refused"),
    30: ("property/test_guard_properties.py::test_any_shape_becomes_the_reservations",
         "unit/test_loop.py::test_a_failing_policy_costs_only_its_ticks"),
    31: ("property/test_guard_properties.py::test_any_numbers_become_a_feasible_allocation",),
    32: ("unit/test_loop.py::test_a_late_policy_loses_its_tick",),
    36: ("contract/test_hal_contract.py::test_time_does_not_go_back",),
    37: ("unit/test_loop.py::test_an_overrun_costs_the_ticks_it_ran_into",),
    38: ("unit/test_linux_resctrl.py::test_every_prefix_of_every_write_leaves_no_overlap",
         "lab/test_lab_resctrl.py::test_kill_9_at_every_write",
         "integration/test_linux_env.py::test_a_killed_environment_leaves_nothing_behind",
         "integration/test_linux_run.py::test_kill_9_at_random_moments"),
    39: ("unit/test_journal.py::test_what_does_not_check_out_is_put_aside",),
    40: ("unit/test_journal.py::test_a_journal_of_another_boot_is_recognised",
         "integration/test_linux_cgroup1.py::test_a_record_of_another_boot_or_kind_is_no_original"),
    41: ("unit/test_linux_resctrl.py::test_only_one_foreshare_drives_a_mount",
         "integration/test_linux_run.py::test_two_at_once_are_refused"),
    42: ("unit/test_journal.py::test_a_lease_keeps_others_out_and_ends_with_its_process",),
    49: ("integration/test_linux_cgroup1.py::test_no_descriptor_is_left_behind",),
    50: ("unit/test_inventory.py::test_a_link_that_says_nonsense_is_unknown",),
    51: ("unit/test_inventory.py::test_pcie_devices_with_link_driver_node_and_virtual_functions",),
    52: ("unit/test_loop.py::test_demand_above_capacity_keeps_reservations",
         "unit/test_loop.py::test_zero_vms_and_one"),
    54: ("unit/test_linux_resctrl.py::test_an_unknown_error_comes_with_the_kernels_words",),
    55: ("unit/test_linux_resctrl.py::test_no_write_is_longer_than_the_kernel_takes",),
}  # fmt: skip
"""By fault: the tests, relative to tests/; each says the number in its docstring."""
OPEN: dict[int, str] = {
    15: "a system call that never returns stops the loop: writes are not made by a process that could be given up",
    16: "a tool that writes the registers past resctrl leaves no trace in its files, so there is nothing to compare",
    22: "a cpuset above a VM's own that lost a CPU (v1) is not ours to write; the VM's own is, once it is read back",
}
"""By fault: what is missing, and why."""
ELSEWHERE: dict[int, str] = {
    33: "model files", 34: "model files", 35: "forecast errors", 43: "reloading a configuration",
    44: "configuration files (TOML, which has no references to expand)", 45: "the recorder", 46: "training",
    47: "metrics", 48: "the control socket", 53: "policies",
}  # fmt: skip
"""By fault: whose list it is on."""
