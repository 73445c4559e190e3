"""IAM policies as ``docs/iam.md`` gives them, what they allow, and what a request needs."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs/iam.md"

Policy = dict[str, Any]

NEEDS: Mapping[str, tuple[str, ...]] = {
    "GetObject": ("s3:GetObject",),
    "HeadObject": ("s3:GetObject",),
    "PutObject": ("s3:PutObject",),
    "CreateMultipartUpload": ("s3:PutObject",),
    "UploadPart": ("s3:PutObject",),
    "CompleteMultipartUpload": ("s3:PutObject",),
    "DeleteObject": ("s3:DeleteObject",),
    "DeleteObjects": ("s3:DeleteObject",),
    "AbortMultipartUpload": ("s3:AbortMultipartUpload",),
    "ListParts": ("s3:ListMultipartUploadParts",),
    "ListObjectsV2": ("s3:ListBucket",),
    "HeadBucket": ("s3:ListBucket",),
    "ListMultipartUploads": ("s3:ListBucketMultipartUploads",),
}
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html"""

WITH_PARAMETERS = {
    "Tagging": ("s3:PutObjectTagging",),
    "ACL": ("s3:PutObjectAcl",),
    "SSEKMSKeyId": ("kms:GenerateDataKey", "kms:Decrypt"),
}


def documented(bucket: str, prefix: str) -> tuple[Policy, Policy]:
    """The writer's and the reader's policy for a bucket and a prefix."""
    blocks = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    writer, reader = (
        json.loads(block.replace("BUCKET", bucket).replace("PREFIX", prefix)) for block in blocks
    )
    return writer, reader


def actions_of(policy: Policy) -> list[str]:
    """Every action that it allows, by name."""
    return [action for statement in policy["Statement"] for action in _list(statement["Action"])]


def without(policy: Policy, action: str) -> Policy:
    """The policy with one action less."""
    statements = [
        {**statement, "Action": [one for one in _list(statement["Action"]) if one != action]}
        for statement in policy["Statement"]
    ]
    return {**policy, "Statement": [one for one in statements if one["Action"]]}


def allows(policy: Policy, action: str, resource: str) -> bool:
    """Whether it allows an action; it knows neither conditions nor principals, and there are none."""
    matching = []
    for statement in policy["Statement"]:
        assert statement.keys() <= {"Sid", "Effect", "Action", "Resource"}
        actions, resources = _list(statement["Action"]), _list(statement["Resource"])
        if any(fnmatchcase(action, one) for one in actions) and any(
            fnmatchcase(resource, one) for one in resources
        ):
            matching.append(statement["Effect"])
    return "Allow" in matching and "Deny" not in matching


def _list(one: str | list[str]) -> list[str]:
    return [one] if isinstance(one, str) else one


@dataclass(frozen=True)
class Request:
    """One request as botocore was asked for it."""

    name: str
    parameters: Mapping[str, Any]

    def needs(self) -> Iterator[tuple[str, str]]:
        """The actions it takes, each with its resource."""
        bucket = f"arn:aws:s3:::{self.parameters['Bucket']}"
        keys = [self.parameters.get("Key")]
        if self.name == "DeleteObjects":
            keys = [one["Key"] for one in self.parameters["Delete"]["Objects"]]
        for key in keys:
            for action in NEEDS[self.name]:
                yield action, bucket if key is None else f"{bucket}/{key}"
            for parameter, actions in WITH_PARAMETERS.items():
                if parameter in self.parameters:
                    yield from ((action, f"{bucket}/{key}") for action in actions)
