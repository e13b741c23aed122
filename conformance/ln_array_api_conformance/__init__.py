"""The suite that holds every array library and every backend to the numerics contract.

Run it with ``pytest --pyargs ln_array_api_conformance --library NAME --backend NAME``. It imports
only public names of ``ln_array_api``, so it tests what a user calls.

======================== ===================================================================
``row_operations.py``    operations over an axis: the definition and the description of each
``channel_operations.py`` the same for operations whose parameters belong to channels
``other_operations.py``  the same for operations on weights and on windows
``operation_spec.py``    what a description consists of; a new operation is one more of them
``reference.py``         expected results: float64 or mpmath, gradients by complex step
``inputs.py``            the values and the lengths of the inputs
``tolerances.py``        every tolerance, with its reason
``checks.py``            comparison of results and gradients with the reference
``libraries.py``         how to make and read arrays of each library, and what it supports
``expected_failures``    a text file for each library, with a reason for each line
======================== ===================================================================
"""
