from dataclasses import replace

import pytest
import torch

from skelops.graphs import LAYOUTS, STRATEGIES, adjacency, get_layout

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@every_layout
def test_edges_are_a_tree_that_ends_in_the_center(layout):
    assert sorted(child for child, _ in layout.edges) == sorted(set(range(layout.num_joints)) - {layout.center})
    for joint in range(layout.num_joints):
        for _ in range(layout.num_joints):
            joint = layout.parents[joint]
        assert joint == layout.center


@every_layout
def test_flip_is_an_involution_that_swaps_the_sides(layout):
    for joint, other in enumerate(layout.flip):
        assert layout.flip[other] == joint
        swapped = {"left": "right", "right": "left"}
        name = " ".join(swapped.get(word, word) for word in layout.joint_names[joint].split())
        assert layout.joint_names[other] == name


@every_layout
def test_parts_partition_the_joints(layout):
    assert sorted(joint for part in layout.parts for joint in part) == list(range(layout.num_joints))
    assert len(layout.parts) == len(layout.part_names) == 5
    for part, name in zip(layout.parts, layout.part_names, strict=True):
        sides = {layout.joint_names[joint].split()[0] for joint in part} & {"left", "right"}
        if name.startswith(("left", "right")):
            assert all(name.split()[0] in layout.joint_names[joint] for joint in part)
        assert name == "trunk" or len(sides) <= 1
    flipped = {tuple(sorted(layout.flip[joint] for joint in part)) for part in layout.parts}
    assert flipped == {tuple(sorted(part)) for part in layout.parts}


@every_layout
def test_a_stored_layout_is_found_again(layout):
    assert layout.stored() == layout.name
    mine = replace(layout, edges=layout.edges[1:])
    for changed in (mine, replace(mine, name="mine")):
        assert isinstance(changed.stored(), dict)
        assert get_layout(changed.stored()) == changed
        assert hash(get_layout(changed.stored())) == hash(changed)


@every_layout
def test_shoulders(layout):
    left, right = layout.shoulders
    assert (layout.joint_names[left], layout.joint_names[right]) == ("left shoulder", "right shoulder")


@every_layout
def test_agcn_orientation_and_column_sums(layout):
    identity, inward, outward = adjacency(layout, "agcn")
    assert torch.equal(identity, torch.eye(layout.num_joints))
    assert set(inward.unique().tolist()) == {0, 1}
    assert inward.sum(0).tolist() == [0.0 if joint == layout.center else 1.0 for joint in range(layout.num_joints)]
    has_children = torch.tensor([joint in layout.parents[:joint] + layout.parents[joint + 1 :]
                                 for joint in range(layout.num_joints)])  # fmt: skip
    torch.testing.assert_close(outward.sum(0), has_children.float())
    x = torch.randn(layout.num_joints)
    to_children, to_parents = x @ inward, x @ outward
    for child, parent in layout.edges:
        assert to_children[child] == x[parent]
        siblings = [c for c, p in layout.edges if p == parent]
        torch.testing.assert_close(to_parents[parent], x[siblings].mean())


@every_layout
def test_spatial_distance_and_uniform_split_one_matrix(layout):
    (full,) = adjacency(layout, "uniform")
    torch.testing.assert_close(full.sum(0), torch.ones(layout.num_joints))
    assert torch.equal(full > 0, full.T > 0)
    for strategy in ("spatial", "distance"):
        subsets = adjacency(layout, strategy)
        assert torch.equal(subsets.sum(0), full)
        assert torch.equal(subsets[0] > 0, torch.eye(layout.num_joints, dtype=torch.bool))
        assert ((subsets > 0).sum(0) <= 1).all()


def test_ntu_non_zeros():
    assert [(subset != 0).sum().item() for subset in adjacency("ntu", "agcn")] == [25, 24, 24]
    assert [(subset != 0).sum().item() for subset in adjacency("ntu", "spatial")] == [25, 40, 8]


def test_ntu_spatial_subset_of_neighbours_nearer_to_the_center():
    nearer = adjacency("ntu", "spatial")[2]
    # Joint 21 reaches its four neighbours, and these reach one neighbour each.
    expected = {(20, 1), (20, 2), (20, 4), (20, 8), (1, 0), (2, 3), (4, 5), (8, 9)}
    assert {tuple(pair) for pair in nearer.nonzero().tolist()} == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shape_and_dtype(strategy):
    result = adjacency("coco", strategy)
    assert result.dtype == torch.float32
    assert result.shape == ({"agcn": 3, "spatial": 3, "distance": 2, "uniform": 1}[strategy], 17, 17)
    result.fill_(0)
    assert adjacency("coco", strategy).any(), "the caller's copy must not be shared"


def test_joint_counts():
    assert {name: layout.num_joints for name, layout in LAYOUTS.items()} == {
        "ntu": 25, "nw_ucla": 20, "coco": 17, "openpose": 18,
    }  # fmt: skip


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="ntu, nw_ucla, coco, openpose, got 'kinect'"):
        adjacency("kinect")
    with pytest.raises(ValueError, match="agcn, spatial, uniform, distance, got 'star'"):
        adjacency("ntu", "star")
    with pytest.raises(TypeError, match="layout"):
        get_layout(25)  # type: ignore[arg-type]


def test_names_forgive_case_and_dashes():
    assert get_layout("NW-UCLA") is LAYOUTS["nw_ucla"]
    assert get_layout(LAYOUTS["ntu"]) is LAYOUTS["ntu"]
