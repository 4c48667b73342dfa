#!lua
-- Drops the events of a stream that are old, and that all groups are done with. Drops the names of consumers, too, that have
-- nothing and were not heard of for long: each run of a gateway has one of its own.
--
-- KEYS  1 the stream
-- ARGV  1 the oldest id that is kept in any case   2 how many groups there are   3 milliseconds after which a consumer goes
--       4 the most that are dropped
local call = redis.call
local stream = KEYS[1]

-- Answers are lists of names and values.
local function named(list)
    local fields = {}
    for at = 1, #list, 2 do
        fields[list[at]] = list[at + 1]
    end
    return fields
end

local function is_before(one, other)
    local one_time, one_number = string.match(one, '^(%d+)-(%d+)$')
    local other_time, other_number = string.match(other, '^(%d+)-(%d+)$')
    if one_time ~= other_time then
        return tonumber(one_time) < tonumber(other_time)
    end
    return tonumber(one_number) < tonumber(other_number)
end

if call('EXISTS', stream) == 0 then
    return 0
end
local groups = call('XINFO', 'GROUPS', stream)
if #groups < tonumber(ARGV[2]) then
    return 0
end
local oldest = ARGV[1]
for _, group in ipairs(groups) do
    group = named(group)
    -- What it has not read comes after the last that it was given; and what it is not done with is from the first such on.
    local needed = group['last-delivered-id']
    if group['pending'] > 0 then
        needed = call('XPENDING', stream, group['name'])[2]
    end
    if is_before(needed, oldest) then
        oldest = needed
    end
    for _, consumer in ipairs(call('XINFO', 'CONSUMERS', stream, group['name'])) do
        consumer = named(consumer)
        if consumer['pending'] == 0 and consumer['idle'] > tonumber(ARGV[3]) then
            call('XGROUP', 'DELCONSUMER', stream, group['name'], consumer['name'])
        end
    end
end
return call('XTRIM', stream, 'MINID', '~', oldest, 'LIMIT', ARGV[4])
