#!lua flags=allow-oom
-- ARGV: 1 to correct
-- Bytes of the in-flight budget that no open batch accounts for.
local credit = tonumber(redis.call('GET', P .. 'credit') or '0')
local owed = 0
for _, job in ipairs(redis.call('ZRANGE', P .. 'jobs', 0, -1)) do
  for _, batch in ipairs(redis.call('SMEMBERS', open_key(job))) do
    owed = owed + tonumber(redis.call('HGET', batch_key(batch), 'credit') or '0')
  end
end
if ARGV[1] == '1' and credit ~= owed then redis.call('SET', P .. 'credit', owed) end
return credit - owed
