"""The golden vectors that come with this program: those of the MiniLM pair."""

from __future__ import annotations

import base64

from registry.models import MINILM_SHA256
from registry.spaces import FAKE_REVISION, VectorSpace
from worker.encoders.goldens import Golden, unpack_golden


def shipped(space: VectorSpace) -> Golden | None:
    """The goldens of a space that its weights decide; None where none come with this program."""
    if space.weights != MINILM_SHA256 or space.output != "dense" or space.revision == FAKE_REVISION:
        return None
    return unpack_golden(base64.b64decode(_MINILM))


#: `pack_golden(measure(encoder, ["dense"])["dense"])` of all-miniLM-l6 by sentence-transformers 6.2 in
#: float32 from the weights with that SHA-256, in base64.
_MINILM = (
    "VjViMQMAXRAAAAAAAABROwo0/hP9Wfs6n2FdEqeDEAEAAAAAAAB7InRva2Vucy5rZXB0Ijp7ImR0eXBlIjoiSTMyIiwic2hhcGUi"
    "Ols1XSwiZGF0YV9vZmZzZXRzIjpbMCwyMF19LCJ0b2tlbnMuc2VlbiI6eyJkdHlwZSI6IkkzMiIsInNoYXBlIjpbNV0sImRhdGFf"
    "b2Zmc2V0cyI6WzIwLDQwXX0sImRlbnNlLnZhbHVlcyI6eyJkdHlwZSI6IkYxNiIsInNoYXBlIjpbNSwzODRdLCJkYXRhX29mZnNl"
    "dHMiOls0MCwzODgwXX0sImFib3V0Ijp7ImR0eXBlIjoiVTgiLCJzaGFwZSI6WzI5XSwiZGF0YV9vZmZzZXRzIjpbMzg4MCwzOTA5"
    "XX19ICAgICAgIAEAAAABAAAAAQAAAAEAAAABAAAADwAAAKcAAAAzAAAAgAAAAAsAAADgJ24qVhlWLbGl06VgLDurW6UqpG+dCxjn"
    "qTglNaw3HyanYRmWKlaqWydJJOelbh1TojggoCR8rZchJqVOruookal5JucrWScGI9ukaihjKEQfPqnboGAu2q06qzCbiqlIpe8f"
    "LajnqiCtyKqvK4sLJCU9Ie4rjau5J1Ipraiykm4oCSnMrSQsi6e4nKmnwiogJzEgnZyDq5Ijb6lEpK8oZKnqqWOsmSyNLCCpGSgY"
    "KAAqCCzfnUKvdKSJpvqt0iYlqlskzaSdlRcsIClBJbkpPicQp4moeavhldisg6BjKt+o1Sn3IkOl3QziGpylPS1qK6kq9Sg5Lcmk"
    "CynyLwCA8CoXLeiiyCmeMMcoxKiSKU2oPidYq3YkiZldLTsoQJupKwibtx4erDQkK51QpBKv9aPXqfSnFqWqp0soDBHYKokqkiUJ"
    "K5kWSaB/qVqsA6iFsPUYIasxKZao+ht2qLgmJy8gL76k+azXrSOqiirBqH0bxxjOKBunFyo0rq8pUyTeLQYrbqhbqPieDZ0Lrsyd"
    "AiiGqRWpICS+KjejUqcnJcetkyn7m3GojCxkp6wnXyMgqE+WYo8DndstpK0ssAAAjKlgqn2q1ZQsqbuuga3hmCQifC1QrEaonp5O"
    "KKqoxqzyKmujHSPbnJogk6Y1Ip6aqSdXLPUtz6g1roiso6xQH+0luigDr8wsoSq0Ktijui0tHeubjCnJqRauOJ5iq4ktxCZFKeqp"
    "yKyzJowpiqsvKW+hdKYxK7sozSnGnIUl5y4dnFKpO6T2KFStgywwLqOlkq+iIosUZp3hp1Choa2UKN+i+av+pAIqDKiXsNcpOaai"
    "KH4otpQbK7KoSqzcigCAKK1lq8iqpaYOLLipNy6toEOrY6ltLSmrMxrfq/gsWqO0LWeox6jFnfUqEiZnItipciOnLjUgBS+eIIQs"
    "xC7HKQ4vNyV9qAIenyJeoBmi6Sr7q1UrAqw0KXssOyqvLBmqjqbdK54oVainLncsjCXVIS4rBpO7p86keh9SLdUaTSgkqfIsvyww"
    "HLEaZ52/HU2tPqeXIhKezyQHKpWoqa/TKU+sF6AcI+QcqKgfKU2pH6y8qoQshKjCpMij3aM3q5UsQacII68p5irGIzwlCKJ4ndeX"
    "aSpGJxUwGKPuIEmsK6VsIVugWqozqCOiEqo7oFsrDx5cpVekAymDKOQsd6+8nBcxEJcQqB0slK3xLFcgtRz6LEIg3Jw8rCKs1K2X"
    "KZ2KPbA3qb6h+ySSqWWriKZnplIlRioiJWGvzyP1K+wcLizmqCosdqadKvMkMy6XKL6oQSLKpoepkKR4qWitrCMRKQafEp+jqGcp"
    "AiQDqnarASyKK6UVC6MEJ6Gt6KeWLgAAJaFsqEOooiptMRMgnifVqAgoVyuSJQUq/K1moaaoKKPKK9smSqe3qQqVqah/HD+wi554"
    "omGhPRroLSIsDaN7Kb2qQaReoTGkyyucq0yozaazriCm5Sk6Kk2p+KlEJMkXYCowLEQohKoRr5uoXaI9pB8pAifXnXOevCJ1o9gq"
    "gi3BLCQuaxRiquwlhKlBr14kZygSoRqnr52BJQSocKiQq3yoJiq7q2AoAaxyqtQl0qgVK+YqPajLqYksXKxNrQCAS6HlrH+sfiHt"
    "qEerTRMwJr8dz6f7rzArFqN7KmKrqiVTLWQoO6dWqowsrKmfJOkvwKkaKTEkx6+6reMhNCURnOssciXWrrKe2C16KLSrCy4sJQOo"
    "AKJkrH2sBZeFmWUk7Ce9KUEmoaL5nSusQ6ZbK14do61vKewtyypaJfCubSBhGIEmz5nZHiQSGixTpP2bb6zuqqcrkyaopzYgPKuw"
    "JUSjh6jpotAt2BwmrxIwTpzEG4KisimuJSCoCKTTEwGA3Kjvp2EkuqVKkQyq5R7EJQqjK6MRK9CqQ6zDrVItgKZgK4Ssxa4oqsQt"
    "9CjfJEUgjqx9KrQZVC23JIMv4Sn4KAShrClkoZSjnCp1oMEgkSp/rKkmB62zKxIrNiVCKjAiNygkqlIrwqZ3LNQsHyjyKCwfjSCF"
    "qqOgdZ3ILNSoWiryLFelWiQCJTWqUBz4LKIkZqm/qq4trasgo12iHCbGrsUuOKjvKJokfyiIqnEicitoHysg4yaUKMQpmatZoHAw"
    "PjDLqzMtBikwLN2voRkBLxepv62RJbQFwycyLEYkjg1opxYgiKyUJDOqMB3tJsGt6qfYIXOcByodoaCr1KmMKKIpWx+srYkkWqhK"
    "qRYamKwMEwuhk6ofng0lZ6GDqraqdaQbpZmowSVxoDGq8iY3p8mPUaiGpKYsBqwXKb2n1SfirOSq06MXLKOpcC0yKWMqoaeQrB6q"
    "My36KL4p3Kjfqyap46ktlUamKS9Ur4ErXSqFIKsoj6xKqbKwJizlLQAAXq2CoByoDShYK+ekXaXlD8MrDSvqI9kmwJ3vKzMiVB0G"
    "IOUfQI36orclRaJGKgmk5yMtKusjV6UQLRMmkSnDpY8nO6qtrS2qsatZoaCd/SnfrP6kVSd5p14TFSxYoFqoHSxjqnuhcqivrT0v"
    "zSxoj/2SICvclFuqJ6mALv4oNCJyIvqaL6JeKxcjbClZoWqqfCzGI6iQvajXqh0YOCQEKRSg0yhQKtAj6ataF1ktRaVzqFUl1K80"
    "K+cq7qPsrQCAjCyZG9apNylTqpcpHquBLJOoQC1qrIqkDyo8qFmjVCxBMCipoK09pDQmkCgbqbksv6s2IR8sJagHrmim7q4prT6g"
    "By4BHQ4sSSZnLC6tXCskHuCpryWXLeAlEqpUrfysfKOqpWEs6qMppkKqC6nlJN6hjqIUp6MpRy4ZqHioCalmIxQWoZa9nRck1J8U"
    "LcIreqEPnWqwcyXKJKosapz0pn0i3yTbqfssmBUCrUQjeCcCKGalCKj2Kn2sjZ4dKgGA9Si/rlmevybzCXqr7KuXormcWimRKV+n"
    "7K+NL9UmP6szHOAqdqlZqFYduSiYJ+qrfyqOqYeo7SnipHWsHyL/mzSrGCjMqOcmF6g1Ii2tQ6qrrIqwoZp9oiusgqOOq5+dop/N"
    "LaOpUysILZwhxanknAypfaleqgEi0iifIvetMSn+KTKSJymlH44mq6uZJoAlk6hYqHao36N0LBgpra9sKJ+rGCvSq9Kr/aG1JX4k"
    "ch83LSMm8K3tJN4keKaBqlaiYymaplSlXqxCqKsnw6L7mWKTzyg6JZ+nWqtKLAer/aWTG3cmSKkqLC2umykirCgiKCnSq0Qtb6xF"
    "KqopVSwmKdWmw6zVoc8tQaoRLKQi+J5oo1yqMCwjsPqkG6Tmq8op+aZirgOdsSRspAas6ydFLawsByMarCQmWq1Mqn8tdiiopKSs"
    "uiVnKo4mPqkSK1Yl9iqzqvQtDqQQqCKrCybfpy2m5ClXJTursJlbKhKaLCDjK5IkmqEuHcQq6iSUJQAALKx7r9AowCCiLdwrtarv"
    "Fmksu5/8JxIqGx1gpMgt1J9KKaApzCDHrBctXazaKICh3KxAq1KpeKNaHv+lQqu1KPurMq0iKdKkR5xZnoUu56ZrnKqjzyBBq4ym"
    "ay0WK74uIqnzLYWoTquComocqqFGqGYqAy1urMSp+ag0ohEgBKhOJaSn+SJ/LxCkPilnJBkqjKtqKmunBqm6qJSjyKxbrDWc4CY4"
    "I6yuVyjNmpslSyx5rfusJ6iUp+okDS22qgCAjKzkLUku/CiXJTQtSppGK08whR9KsH2iRJfoq0wr06ewKGmq4x6hqfSnjanxqacs"
    "v6iRICEpbKt9rHEgKKIQqtCcVicIp1mrVSzaqh2vWStsnhwoRiJ6IuYrri09qQmnG62zqwgqiS0SrDuSs51uL+GsOCk5q8+rc6Pl"
    "rVmoe58XqZ4pHJxOsH2t+iuYK/kkz6korNSpD6Q5LsmosaVeKXedHKhiLeuqbq89qFUshCqplAkqmhyKKIIreaiJpAGAk6xfqGYQ"
    "fij/q68oXCmVK1IX1KPgJFiqMSicLXOmO50CJWsmtCecJJygSKpwIUcoNqwapWalKqWALD+jvCk8pRou5CgiqMCehyZkJh+hupad"
    "rJmaEQH6paAs4J7PItqhbylYq98wvag2qK6qAy2Mp3el9SbcJ/Kj9qjhowuwpBh5Ioah+SluKZWms6NjkFEqYisJpket/5hUJI4Y"
    "oK//psuqgqaLpgWo9B/mq+EaUq2SKHwoH6+9KJsrJSxpqgepoCsnp+OtUrHCpqojJqi+IkCjOSg0ppWnaCupLKasDaNMruErkqfw"
    "KxccChx7oOIs3Rvvqp6XtimyKcunuKoVLDkonR/mqu8inyTEH8epRab1KcircKNdsBKspibcp7MmwS3Hp9GsRagAKWUlaS7ULP4r"
    "HS7yqYaija9Gosov9igdHZGoyig4KlemOKpeLnEh7CEQqDAoFC0cpd+lXSAOJzIoYSu6KBurqiJjJHQkOyBYK7AkpqhbJFOeaZ26"
    "KACAPpk3rBQbH6gGLDsn/CQYJfEsJSsfpa8qrKj4ImYqR6KXINkoTx32qtAo+qFuJEql7COPIxGlaKimnoIlhCgbKDmtr60tJrml"
    "I6DIJG4uYBiIp1gGmSY6qdGuGp9FKPosHaksLaueHqgMou8lyCLoKLQmhS+3qiwrxqUYmdMnTp8NqKoiA6sMJqar2CfpJe0k96sG"
    "JRglN6nGKq4s2aVfJimasSJ1KDCwaKXrJgOA/Sm0rXeuFCBboMQd4S9apQAAX6ygJQUqsiudpF0tpKIDJZYr3JoRrGgt9iXUJG0s"
    "06WOLc2tAqZ0pI8s16jWpAyknyg2nCQrQqcbr/upmqAZrvysyyhiGyisRyt3qUWr3qaZCD0nuyUVJG8tlzBXoIyhRqN6rl8gsaQr"
    "prIn4qmPLGye9qq3rIKiISxGqius8aeuqpgjH6Y9sPOslagNK+QgEqOhqVGe0SImL0apV6tYKnmkxyRuLV6tDq5/l0YnxKfArGUo"
    "AxT/K8IiPKhWpgCAUaXZqp4gMBTHqOclgxbmJjam8LACLKqvKibnLRCizyN4or8oQyXaph8sIJ6KLvQmYqUQKlwimqoFoJGo6CFm"
    "nKgsiCuKnXAshah2Is0kBp/ZKXSoCisBpVcpfCr1p/ck/SYQrLsxBKgMEzidRCulqmknRqymIAmnwK13FDOwpCN7InJlamVjdGVk"
    "Ijoge30sICJub3RlcyI6IHt9fQ=="
)
